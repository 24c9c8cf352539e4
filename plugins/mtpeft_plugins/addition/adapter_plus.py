"""Adapter+ (CVPR 2024, arXiv 2406.06820): a bottleneck behind each block with a gain for each channel.

``x' = x + g * up(GELU(down x))`` with ``x`` the stream behind the MLP's residual connection (the paper's Post-Adapter)
and ``g (d,)``. Both maps are drawn from a normal of deviation .01, cut at two deviations, and ``g`` is one, so it
starts near the identity and not at it, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtpeft.api import Bottleneck, Count, Declarations, Method, OutputPart, Site


class Scaled(OutputPart):
    """``y + g * up(GELU(down y))``."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.bottleneck, self.gain = Bottleneck(width, hidden), nn.Parameter(torch.ones(width))
        for linear in (self.bottleneck.down, self.bottleneck.up):
            nn.init.trunc_normal_(linear.weight, std=0.01, a=-0.02, b=0.02)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.gain * self.bottleneck(y)


@dataclass
class AdapterPlus(Method):
    """A bottleneck adapter with channel-wise scaling on the stream behind each block."""

    declares = Declarations(
        category="addition",
        identity_at_init=False,
        families="all",
        paper="Adapters Strike Back, CVPR 2024, arXiv 2406.06820",
    )

    at: str = "block"
    hidden: Count = 8

    def part(self, site: Site) -> OutputPart:
        return Scaled(site.width, self.hidden)
