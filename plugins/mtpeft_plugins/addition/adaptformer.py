"""AdaptFormer (NeurIPS 2022, arXiv 2205.13535): a bottleneck beside each MLP.

``y' = MLP(x) + s up(drop(ReLU(down x)))`` with ``x`` the MLP's input, behind the norm, as in the paper's equation (the
released code takes the stream before the norm).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from mtpeft.api import Count, Fraction, Method, OutputPart, Positive, Site
from mtpeft_plugins.addition._beside import refuse_reshaped


class ParallelBottleneck(OutputPart):
    """``down (h, d)`` Kaiming-uniform with ``a = sqrt(5)``; ``up (d, h)`` and both biases zero."""

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


@dataclass
class Adaptformer(Method):
    """A bottleneck adapter parallel to each MLP."""

    paper = "AdaptFormer, NeurIPS 2022, arXiv 2205.13535"
    families = "backbones with MLP blocks"

    at: str = "mlp"
    hidden: Count = 64
    scale: Positive = 0.1
    dropout: Fraction = 0.1
    ln_in: bool = False

    def part(self, site: Site) -> OutputPart:
        refuse_reshaped(site)
        return ParallelBottleneck(site.width, self.hidden, self.scale, self.dropout, self.ln_in)
