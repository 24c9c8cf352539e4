"""VeRA (ICLR 2024, arXiv 2310.11454): trained scales around two frozen random matrices that all layers share.

``W' = W + diag(b) B diag(d) A``, ``b`` zero and ``d`` .1 at the start. ``A`` and ``B`` are Kaiming-uniform, cut to each
layer's size; they follow from ``seed`` on any machine and are not saved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtpeft.api import Count, Declarations, FixedSeed, LowRankPart, Method, Site, fixed_uniform, zeros


class Projections(nn.Module):
    """``A (r, largest in)`` and ``B (largest out, r)``, uniform within ``sqrt(6 / columns)``."""

    def __init__(self, sites: Sequence[Site], rank: int, seed: int) -> None:
        super().__init__()
        shapes = [site.matrix_shape for site in sites]
        for index, (name, rows, columns) in enumerate(
            (("A", rank, max(s[1] for s in shapes)), ("B", max(s[0] for s in shapes), rank))
        ):
            drawn = 2 * fixed_uniform(2 * seed + index, rows, columns) - 1
            self.register_buffer(name, math.sqrt(6 / columns) * drawn, persistent=False)


class ScaledProjections(LowRankPart):
    """``down (r,)`` scales the rows of ``A``, ``up (out,)`` those of ``B``."""

    def __init__(self, site: Site, rank: int, start: float) -> None:
        super().__init__()
        self.shape = site.shape
        self.down = nn.Parameter(torch.full((rank,), start))
        self.up = zeros(site.out_features)

    def factors(self) -> tuple[Tensor, Tensor, float]:
        width = math.prod(self.shape[1:])
        a = self.down[:, None] * self.common.A[:, :width]
        return a.unflatten(1, self.shape[1:]), self.up[:, None] * self.common.B[: self.shape[0]], 1.0


@dataclass
class Vera(Method):
    """Scales for frozen random low-rank matrices: ``rank + out`` parameters for each weight."""

    declares = Declarations(
        category="partial",
        mergeable=True,
        families="all",
        learning_rate=4e-3,
        paper="VeRA, ICLR 2024, arXiv 2310.11454",
    )

    at: str = "attn.q attn.v | mlp.fc1 mlp.fc2 | conv"
    rank: Count = 256
    start: float = 0.1
    seed: FixedSeed = 0

    def __post_init__(self) -> None:
        self.require(self.start != 0, "start is 0", "at 0 nothing would ever train")

    def common(self, sites: Sequence[Site]) -> nn.Module:
        return Projections(sites, self.rank, self.seed)

    def part(self, site: Site) -> LowRankPart:
        return ScaledProjections(site, self.rank, self.start)
