"""LoHa (FedPara, ICLR 2022, arXiv 2108.06098; LyCORIS, ICLR 2024, arXiv 2309.14859): two low-rank factors multiplied.

``W' = W + s (B1 A1) * (B2 A2)``, entry by entry, so the update reaches rank ``r^2``. As in LyCORIS ``B2`` starts at
zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtpeft.api import Count, Declarations, Method, Positive, Site, WeightPart, zeros


class HadamardProduct(WeightPart):
    """``B1 (out, r)`` at N(0, .1), ``A1`` and ``A2 (r, in)`` at N(0, 1), ``B2 (out, r)`` zero."""

    def __init__(self, site: Site, rank: int, scale: float) -> None:
        super().__init__()
        out, inputs = site.matrix_shape
        self.scale = scale
        self.A1 = nn.Parameter(torch.randn(rank, inputs))
        self.B1 = nn.Parameter(0.1 * torch.randn(out, rank))
        self.A2 = nn.Parameter(torch.randn(rank, inputs))
        self.B2 = zeros(out, rank)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * ((self.B1 @ self.A1) * (self.B2 @ self.A2)).view_as(weight)


@dataclass
class Loha(Method):
    """The entrywise product of two low-rank updates of each chosen weight."""

    declares = Declarations(
        category="partial",
        mergeable=True,
        families="all",
        paper="FedPara, ICLR 2022, arXiv 2108.06098; LyCORIS, ICLR 2024, arXiv 2309.14859",
    )

    at: str = "attn.q attn.v | mlp.fc1 mlp.fc2 | conv"
    rank: Count = 8
    alpha: Positive | None = None

    def part(self, site: Site) -> WeightPart:
        scale = 1.0 if self.alpha is None else self.alpha / self.rank
        return HadamardProduct(site, self.rank, scale)
