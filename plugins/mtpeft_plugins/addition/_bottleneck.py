"""The bottleneck that several adapters share."""

from __future__ import annotations

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

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
