"""LoRand (CVPR 2023): adapters whose two maps are sums of three-factor products with shared kernels.

``y' = y + up(GELU(down y))`` behind attention and behind the MLP, ``W_down = sum_i P_i K_i Q_i`` and ``W_up = sum_i
P'_i K_i Q'_i`` over a few branches; the kernels ``K_i (b, b)`` serve both maps. The last factor of ``W_up`` starts
at zero, so that the adapter starts as the identity (the paper draws all factors Kaiming-uniform).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtpeft.api import Count, Declarations, Method, OutputPart, Site, zeros


class Branches(OutputPart):
    """Trained factors of ``a`` branches, ``b`` wide.

    ``kernels (a, b, b)``; ``down_in (a, b, d)``, ``down_out (a, h, b)``; ``up_in (a, b, h)``, ``up_out (a, d, b)``.
    """

    def __init__(self, width: int, hidden: int, branches: int, kernel: int) -> None:
        super().__init__()
        self.kernels = nn.Parameter(torch.empty(branches, kernel, kernel))
        self.down_in = nn.Parameter(torch.empty(branches, kernel, width))
        self.down_out = nn.Parameter(torch.empty(branches, hidden, kernel))
        self.up_in = nn.Parameter(torch.empty(branches, kernel, hidden))
        self.up_out = zeros(branches, width, kernel)
        self.down_bias, self.up_bias = zeros(hidden), zeros(width)
        for factor in (*self.kernels, *self.down_in, *self.down_out, *self.up_in):
            nn.init.kaiming_uniform_(factor, a=math.sqrt(5))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        down = (self.down_out @ self.kernels @ self.down_in).sum(0)
        up = (self.up_out @ self.kernels @ self.up_in).sum(0)
        return y + F.linear(F.gelu(F.linear(y, down, self.down_bias)), up, self.up_bias)


@dataclass
class Lorand(Method):
    """Multi-branch low-rank adapters behind attention and MLP.

    ``hidden`` is half the width unless given. LoRand+ has 4 branches, LoRand++ 4 with kernels 16 wide.
    """

    declares = Declarations(
        category="addition",
        families="all; behind whole blocks where there are neither attentions nor MLPs",
        paper="1% VS 100%: Parameter-Efficient Low Rank Adapter for Dense Predictions, CVPR 2023",
    )

    at: str = "attn mlp | block"
    branches: Count = 2
    kernel: Count = 8
    hidden: Count | None = None

    def part(self, site: Site) -> OutputPart:
        return Branches(site.width, self.hidden or max(site.width // 2, 1), self.branches, self.kernel)
