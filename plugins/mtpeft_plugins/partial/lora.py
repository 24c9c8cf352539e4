"""LoRA (ICLR 2022, arXiv 2106.09685): ``W + alpha / r * B A``, ``B`` zero at the start."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtpeft.api import LowRankPart, Method, Site, zeros


class LowRank(LowRankPart):
    """``A (r, in)`` or ``(r, in, kh, kw)``, Kaiming-uniform with ``a = sqrt(5)``; ``B (out, r)`` zero."""

    def __init__(self, site: Site, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.A = nn.Parameter(torch.empty(rank, *site.shape[1:]))
        self.B = zeros(site.out_features, rank)
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def factors(self) -> tuple[Tensor, Tensor, float]:
        return self.A, self.B, self.scale


class DroppedLowRank(LowRank):
    """The same with dropout on the input of the update; the frozen weight sees all of it."""

    def __init__(self, site: Site, rank: int, scale: float, dropout: float) -> None:
        super().__init__(site, rank, scale)
        self.dropout = dropout

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        return F.linear(F.dropout(x, self.dropout, self.training), a)


@dataclass
class Lora(Method):
    """Low-rank updates of chosen weights; k x k convolutions become k x k to ``rank`` and 1 x 1 back."""

    paper = "LoRA, ICLR 2022, arXiv 2106.09685"
    mergeable = True
    families = "all"

    at: str = "attn.q attn.v | mlp.fc1 mlp.fc2 | conv"
    rank: int = 8
    alpha: float | None = None
    rslora: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        self.check(self.rank >= 1, f"rank is {self.rank}", "a rank is at least 1")
        self.check(0 <= self.dropout < 1, f"dropout is {self.dropout}", "dropout is at least 0 and below 1")

    @property
    def scale(self) -> float:
        """``alpha / r``, or ``alpha / sqrt(r)`` with rsLoRA; alpha is the rank unless given."""
        alpha = self.rank if self.alpha is None else self.alpha
        return alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def part(self, site: Site) -> LowRankPart:
        if self.dropout:
            return DroppedLowRank(site, self.rank, self.scale, self.dropout)
        return LowRank(site, self.rank, self.scale)
