"""DoRA (ICML 2024, arXiv 2402.09353): magnitude and direction of each weight row, the direction changed by LoRA.

With ``V = W + s B A``: ``W' = m V / ||V||`` by rows, ``m`` starting at ``||W||``. As in the paper (section 4.3) no
gradient runs through the norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtpeft.api import Count, Declarations, LowRankUpdate, Method, Positive, Site, WeightPart


def row_norm(weight: Tensor) -> Tensor:
    """Euclidean norm of each output row: ``(out,)``."""
    return weight.flatten(1).norm(dim=1)


class WeightDecomposed(WeightPart):
    """LoRA's factors and a magnitude ``(out,)``."""

    def __init__(self, site: Site, rank: int, scale: float) -> None:
        super().__init__()
        self.direction = LowRankUpdate(site, rank, scale)
        self.magnitude = nn.Parameter(row_norm(site.weight))

    def forward(self, weight: Tensor) -> Tensor:
        directed = self.direction(weight)
        norm = row_norm(directed).detach()
        gain = self.magnitude / norm.clamp(min=torch.finfo(norm.dtype).tiny)  # a row may be zero
        return gain.view(-1, *[1] * (weight.ndim - 1)) * directed


@dataclass
class Dora(Method):
    """LoRA on the direction of each weight row, with the row's magnitude trained beside it."""

    declares = Declarations(
        category="partial", mergeable=True, families="all", paper="DoRA, ICML 2024, arXiv 2402.09353"
    )

    at: str = "attn.q attn.v | mlp.fc1 mlp.fc2 | conv"
    rank: Count = 8
    alpha: Positive | None = None

    def part(self, site: Site) -> WeightPart:
        return WeightDecomposed(site, self.rank, (self.alpha or self.rank) / self.rank)
