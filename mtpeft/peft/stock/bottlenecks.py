"""Bottlenecks: the small network of most adapters, and the two ways to add it to a module."""

from __future__ import annotations

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from mtpeft.peft.parts import OutputPart

Activation = Literal["gelu", "relu"]


class Bottleneck(nn.Module):
    """``up(drop(phi(down x)))``: ``down (h, d)`` Kaiming-uniform (``a = sqrt(5)``), ``up (d, h)`` and biases zero."""

    def __init__(self, width: int, hidden: int, activation: Activation = "gelu", dropout: float = 0.0) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.activation, self.dropout = activation, dropout
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.down(x)) if self.activation == "gelu" else F.relu(self.down(x))
        return self.up(F.dropout(hidden, self.dropout, self.training))


class SequentialBottleneck(OutputPart):
    """``y + up(phi(down y))``: a `Bottleneck` behind a module (Houlsby, Pfeiffer)."""

    def __init__(self, width: int, hidden: int, activation: Activation, dropout: float) -> None:
        super().__init__()
        self.bottleneck = Bottleneck(width, hidden, activation, dropout)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.bottleneck(y)


class ParallelBottleneck(OutputPart):
    """``y + s up(drop(ReLU(down x)))``: a bottleneck beside a module (AdaptFormer).

    ``down (h, d)`` is Kaiming-uniform with ``a = sqrt(5)``; ``up (d, h)`` and both biases are zero.

    Args:
        norm: puts a layer norm of its own before ``down``.
    """

    def __init__(self, width: int, hidden: int, scale: float, dropout: float, norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.scale, self.dropout = scale, dropout
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        hidden = F.dropout(F.relu(self.down(self.norm(x))), self.dropout, self.training)
        return y + self.scale * self.up(hidden)
