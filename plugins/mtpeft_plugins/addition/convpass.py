"""Convpass (IJCAI 2024, arXiv 2207.07039): a convolutional bottleneck beside attention and beside the MLP.

``y' = y + s up(drop(phi(conv3x3(phi(down x)))))`` with ``phi`` the quick GELU, ``x`` the input behind the norm and
``conv3x3`` over the token grid; each token before the grid is a grid of its own. ``conv3x3`` starts as the
identity, ``up`` at zero. The released code knows 14 x 14 tokens, one class token and eight channels only. Where
attention works on windows, so does the convolution beside it.
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
    Method,
    OutputPart,
    Positive,
    Site,
    over_grid,
    refuse_reordered,
    refuse_reshaped,
    window_of,
)


class ConvolutionalBottleneck(OutputPart):
    """``down (h, d)`` Xavier-uniform, ``conv (h, h, 3, 3)``, ``up (d, h)``, each with a bias."""

    def __init__(self, site: Site, hidden: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(site.width, hidden), nn.Linear(hidden, site.width)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.scale, self.dropout, self.window = scale, dropout, window_of(site)
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.dirac_(self.conv.weight)
        biases = [tensor for name, tensor in self.named_parameters() if name.endswith(".bias")]
        for tensor in (self.up.weight, *biases):
            nn.init.zeros_(tensor)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        hidden = over_grid(self.conv, quick_gelu(self.down(x)), self.layout, self.window)
        return y + self.scale * self.up(F.dropout(quick_gelu(hidden), self.dropout, self.training))


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


@dataclass
class Convpass(Method):
    """Convolutional bypasses of attention and MLP; ``at = "attn"`` bypasses attention alone."""

    declares = Declarations(
        category="addition",
        families="backbones with attentions or MLPs whose tokens lie row by row",
        paper="Convpass, IJCAI 2024, arXiv 2207.07039",
    )

    at: str = "attn mlp"
    hidden: Count = 8
    scale: Positive = 1.0
    dropout: Fraction = 0.1

    def part(self, site: Site) -> OutputPart:
        refuse_reordered(site)
        refuse_reshaped(site)
        return ConvolutionalBottleneck(site, self.hidden, self.scale, self.dropout)
