"""LoRA-FA (arXiv 2308.03303): LoRA with ``A`` frozen at its random start, so only ``B`` trains.

``W + alpha / r * B A_0``; the backward pass keeps ``A_0 x`` (r numbers) of each input instead of ``x``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mtpeft.api import Count, Declarations, LowRankPart, Method, Positive, Site, fill_down, zeros


class FrozenDown(LowRankPart):
    """``A (r, in)`` fixed, Kaiming-uniform with ``a = sqrt(5)``; ``B (out, r)`` trained from zero."""

    A: Tensor

    def __init__(self, site: Site, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("A", torch.empty(site.down_shape(rank)))
        self.B = zeros(site.out_features, rank)
        fill_down(self.A, "kaiming")

    def factors(self) -> tuple[Tensor, Tensor, float]:
        return self.A, self.B, self.scale


@dataclass
class LoraFa(Method):
    """LoRA whose down-projections stay random and frozen."""

    declares = Declarations(category="partial", mergeable=True, families="all", paper="LoRA-FA, arXiv 2308.03303")

    at: str = "attn.q attn.v | mlp.fc1 mlp.fc2 | conv"
    rank: Count = 8
    alpha: Positive | None = None

    def part(self, site: Site) -> LowRankPart:
        return FrozenDown(site, self.rank, (self.rank if self.alpha is None else self.alpha) / self.rank)
