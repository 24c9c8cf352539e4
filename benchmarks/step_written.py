"""The peers of `step_costs.py`, written out: LoRA without a host, and HydraLoRA head by head as it was released."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtpeft.api import Method, OutputPart, Site, zeros


class HandLora(nn.Module):
    """A fused ``qkv`` with low-rank updates of its q and v rows."""

    def __init__(self, qkv: nn.Linear, rank: int) -> None:
        super().__init__()
        self.qkv, width = qkv, qkv.in_features
        self.down = nn.ModuleList(nn.Linear(width, rank, bias=False) for _ in "qv")
        self.up = nn.ModuleList(nn.Linear(rank, width, bias=False) for _ in "qv")

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[-1]
        qkv = self.qkv(x)
        qkv[..., :width] += self.up[0](self.down[0](x))
        qkv[..., -width:] += self.up[1](self.down[1](x))
        return qkv


class LoopHydra(OutputPart):
    """``y + s sum_n g_n B_n A drop(x)``, every head with a projection and a dropout mask of its own."""

    def __init__(self, site: Site, rank: int, heads: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, site.in_features))
        self.B = nn.ParameterList(zeros(site.out_features, rank) for _ in range(heads))
        self.router = nn.Parameter(torch.empty(heads, site.in_features))
        self.scale, self.dropout = scale, dropout
        for matrix in (self.A, self.router):
            nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        gates = F.linear(x, self.router).softmax(-1)
        for number, b in enumerate(self.B):
            down = F.linear(F.dropout(x, self.dropout, self.training), self.A)
            y = y + gates[..., number, None] * F.linear(down, b) * self.scale
        return y


@dataclass
class LoopHydraLora(Method):
    """HydraLoRA without the fused product."""

    at: str = "linear"
    rank: int = 4
    heads: int = 3
    alpha: float = 32.0
    dropout: float = 0.0

    def part(self, site: Site) -> OutputPart:
        return LoopHydra(site, self.rank, self.heads, self.alpha / self.rank, self.dropout)


class LayerSteps:
    """Forward and backward through one frozen linear layer with HydraLoRA on it: the layer's own cost.

    Args:
        width, out: of the layer.
        tokens: rows of its input.
    """

    def __init__(self, width: int, out: int, tokens: int, rank: int = 4, heads: int = 4) -> None:
        torch.manual_seed(0)
        self.x, self.layer = torch.randn(tokens, width, requires_grad=True), nn.Linear(width, out).requires_grad_(False)
        self.A, self.router = (nn.Parameter(torch.randn(rows, width) * 0.1) for rows in (rank, heads))
        self.B = nn.Parameter(torch.randn(out, heads * rank) * 0.1)
        self.split, self.gradient = self.B.detach().split(rank, 1), torch.randn(tokens, out)
        self.split = [nn.Parameter(piece.clone()) for piece in self.split]

    def frozen(self) -> Tensor:
        return self.layer(self.x)

    def loop(self, once: bool) -> Tensor:
        """Head by head; ``once`` projects by ``A`` once for all of them."""
        gates, y = F.linear(self.x, self.router).softmax(-1), self.layer(self.x)
        down = F.linear(self.x, self.A)
        for number, b in enumerate(self.split):
            down = down if once or number == 0 else F.linear(self.x, self.A)
            y = y + gates[..., number, None] * F.linear(down, b) * 8.0
        return y

    def fused(self) -> Tensor:
        gates, down = F.linear(self.x, self.router).softmax(-1), F.linear(self.x, self.A)
        mixed = (gates.unsqueeze(-1) * down.unsqueeze(-2)).flatten(-2)
        return torch.addmm(self.layer(self.x), mixed, (self.B * 8.0).t())
