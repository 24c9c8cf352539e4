"""AdapterBias (NAACL 2022, arXiv 2205.00305): a shift behind each MLP, weighted token by token.

``y' = y + alpha(h) v`` with ``y = W h + b`` the MLP's last layer, ``v (d,)`` and ``alpha: m -> 1`` linear, which reads
the hidden units ``h`` as the released code does. That is an update of rank one, ``W' = W + v a^T`` and ``b' = b + c
v``, and it merges; ``v`` is zero at the start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtpeft.api import Declarations, LowRankPart, Method, Site, zeros


class TokenShift(LowRankPart):
    """The direction ``v (out, 1)``, and ``a (1, in)`` and ``c (1,)``, which say how far each token goes along it."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        out, inputs = site.matrix_shape
        self.direction = zeros(out, 1)
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(site.down_shape(1)).uniform_(-bound, bound))
        self.offset = nn.Parameter(torch.empty(1).uniform_(-bound, bound))

    def factors(self) -> tuple[Tensor, Tensor, float]:
        return self.weight, self.direction, 1.0

    def bias(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        shift = self.direction[:, 0] * self.offset
        return shift if bias is None else bias + shift


@dataclass
class Adapterbias(Method):
    """Shifts every token along one learned direction, by an amount that depends on the token."""

    declares = Declarations(
        category="partial",
        mergeable=True,
        families="backbones with MLP blocks; merges where timm has a bias to fold the shift into",
        paper="AdapterBias, NAACL 2022, arXiv 2205.00305",
    )

    at: str = "mlp.fc2"

    def part(self, site: Site) -> LowRankPart:
        return TokenShift(site)
