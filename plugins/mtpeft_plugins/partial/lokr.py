"""LoKr (LyCORIS, ICLR 2024, arXiv 2309.14859): a Kronecker product with a low-rank factor.

``W' = W + s W1 x (B A)`` with both sides of the weight split as evenly as they divide (768 = 24 * 32). ``W1`` starts at
zero. Where ``B A`` would be no smaller than the factor it stands for, the factor is stored whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtpeft.api import Count, Declarations, Method, Positive, Site, WeightPart, zeros


def near_square(number: int) -> tuple[int, int]:
    """The two factors of a number that are closest to each other, the smaller first."""
    small = next(d for d in range(math.isqrt(number), 0, -1) if number % d == 0)
    return small, number // small


class Factor(nn.Module):
    """A matrix, whole or as ``B A``; ``zero`` starts it (or its ``B``) at zero."""

    def __init__(self, out: int, inputs: int, rank: int | None, zero: bool) -> None:
        super().__init__()
        self.B = zeros(out, inputs if rank is None else rank)
        self.A = None if rank is None else nn.Parameter(torch.empty(rank, inputs))
        for tensor in (self.A, None if zero else self.B):
            if tensor is not None:
                nn.init.kaiming_uniform_(tensor, a=math.sqrt(5))

    def forward(self) -> Tensor:
        return self.B if self.A is None else self.B @ self.A


class KroneckerProduct(WeightPart):
    """``W1 (a, c)`` zero and ``W2 (b, d)`` for a weight ``(a b, c d)``."""

    def __init__(self, site: Site, rank: int, both: bool, scale: float) -> None:
        super().__init__()
        self.scale = scale
        (out1, out2), (in1, in2) = (near_square(n) for n in site.matrix_shape)
        self.W1 = Factor(out1, in1, rank if both and rank < max(out1, in1) / 2 else None, zero=True)
        self.W2 = Factor(out2, in2, rank if rank < max(out2, in2) / 2 else None, zero=False)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * torch.kron(self.W1(), self.W2()).view_as(weight)


@dataclass
class Lokr(Method):
    """Kronecker products as updates; ``both`` makes the first factor low-rank too."""

    declares = Declarations(
        category="partial", mergeable=True, families="all", paper="LyCORIS, ICLR 2024, arXiv 2309.14859"
    )

    at: str = "attn.q attn.v | mlp.fc1 mlp.fc2 | conv"
    rank: Count = 8
    alpha: Positive | None = None
    both: bool = False

    def part(self, site: Site) -> WeightPart:
        return KroneckerProduct(site, self.rank, self.both, 1.0 if self.alpha is None else self.alpha / self.rank)
