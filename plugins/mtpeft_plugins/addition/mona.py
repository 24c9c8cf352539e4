"""Mona (CVPR 2025, arXiv 2408.08345): a multi-scale convolutional adapter behind attention and behind the MLP.

On the stream ``x``: ``u = gamma LN(x) + gamma_x x``; ``q = down u``; ``q1 = q + (dw3 + dw5 + dw7)(q) / 3``; ``q2 =
q1 + conv1x1(q1)``; ``x' = x + up(drop(GELU(q2)))``. ``gamma`` starts at 1e-6, ``gamma_x`` at one, ``up`` at zero,
so that it starts at the identity; the released code leaves ``up`` as torch draws it. Each token before the grid is a
grid of its own (the paper has Swin, which has none).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtpeft.api import (
    Count,
    Declarations,
    Fraction,
    InputPart,
    Method,
    OutputPart,
    Part,
    Site,
    TokenLayout,
    over_grid,
    refuse_reordered,
)


class MultiScaleAdapter(nn.Module):
    """The change of ``x (..., d)``."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.dropout = nn.LayerNorm(width), dropout
        self.gamma, self.gamma_x = nn.Parameter(torch.full((width,), 1e-6)), nn.Parameter(torch.ones(width))
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)
        sizes = (3, 5, 7)
        self.depthwise = nn.ModuleList(nn.Conv2d(hidden, hidden, k, padding=k // 2, groups=hidden) for k in sizes)
        self.mix = nn.Conv2d(hidden, hidden, 1)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def filter(self, q: Tensor) -> Tensor:
        """``(B, h, H, W)`` to the same."""
        q = q + sum(conv(q) for conv in self.depthwise) / len(self.depthwise)
        return q + self.mix(q)

    def forward(self, x: Tensor, layout: TokenLayout) -> Tensor:
        q = self.down(self.gamma * self.norm(x) + self.gamma_x * x)
        return self.up(F.dropout(F.gelu(over_grid(self.filter, q, layout)), self.dropout, self.training))


class BehindAttention(InputPart):
    def __init__(self, adapter: MultiScaleAdapter) -> None:
        super().__init__()
        self.adapter = adapter

    def forward(self, x: Tensor) -> Tensor:
        return x + self.adapter(x, self.layout)


class BehindBlock(OutputPart):
    def __init__(self, adapter: MultiScaleAdapter) -> None:
        super().__init__()
        self.adapter = adapter

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.adapter(y, self.layout)


@dataclass
class Mona(Method):
    """Multi-scale convolutional adapters on the stream behind attention and behind the MLP."""

    declares = Declarations(
        category="addition",
        families="all whose tokens lie row by row; behind blocks alone where there is no attention",
        paper="Mona, CVPR 2025, arXiv 2408.08345",
    )

    at: str = "middle block"
    hidden: Count = 64
    dropout: Fraction = 0.1

    def part(self, site: Site) -> Part:
        refuse_reordered(site)
        adapter = MultiScaleAdapter(site.width, self.hidden, self.dropout)
        return BehindAttention(adapter) if "middle" in site.tags else BehindBlock(adapter)
