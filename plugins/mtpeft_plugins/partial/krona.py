"""KronA (arXiv 2212.10650): a Kronecker product of two full matrices, ``W' = W + s A x B``.

The sides are split so that both factors are small: ``A (a, d)`` and ``B (b, c)`` for a weight ``(a b, c d)`` with ``a
<= b`` and ``c <= d`` (24 x 32 and 32 x 24 for 768 x 768). ``B`` starts at zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtpeft.api import Declarations, Method, Positive, Site, WeightPart, zeros
from mtpeft_plugins.partial.lokr import near_square


class Kronecker(WeightPart):
    """``A`` Kaiming-uniform, ``B`` zero."""

    def __init__(self, site: Site, scale: float) -> None:
        super().__init__()
        self.scale = scale
        (a, b), (c, d) = (near_square(n) for n in site.matrix_shape)
        self.A = nn.Parameter(torch.empty(a, d))
        self.B = zeros(b, c)
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * torch.kron(self.A, self.B).view_as(weight)


@dataclass
class Krona(Method):
    """One Kronecker product as the update of each chosen weight; about ``2 sqrt(out in)`` parameters."""

    declares = Declarations(category="partial", mergeable=True, families="all", paper="KronA, arXiv 2212.10650")

    at: str = "attn.q attn.v | mlp.fc1 mlp.fc2 | conv"
    scale: Positive = 1.0

    def part(self, site: Site) -> WeightPart:
        return Kronecker(site, self.scale)
