"""PATT (V-PETL, arXiv 2210.00788; BAPAT in some benchmarks): bottlenecks beside keys and values.

``k' = k + s up(tanh(down x))``, ``v`` likewise with weights of its own; ``x`` is the attention's input. ``up``
starts at zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtpeft.api import Count, Declarations, Method, OutputPart, Positive, Site


class BesideProjection(OutputPart):
    """``down (h, in)`` by torch's default, ``up (out, h)`` and the biases zero."""

    def __init__(self, site: Site, hidden: int, scale: float) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(site.in_features, hidden), nn.Linear(hidden, site.out_features)
        self.scale = scale
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.scale * self.up(torch.tanh(self.down(x)))


@dataclass
class Patt(Method):
    """Bottlenecks beside the key and value projections of each attention."""

    declares = Declarations(
        category="addition",
        families="backbones with attentions that call their key and value projections",
        paper="Towards a Unified View on Visual Parameter-Efficient Transfer Learning, arXiv 2210.00788",
    )

    at: str = "attn.k attn.v"
    hidden: Count = 64
    scale: Positive = 0.2

    def part(self, site: Site) -> OutputPart:
        return BesideProjection(site, self.hidden, self.scale)
