"""Res-Tuning (NeurIPS 2023, arXiv 2310.19859): a tuner beside any operation, ``y' = OP(x) + tuner(x)``.

The tuner is an adapter ``up(GELU(down x))``, a prefix ``softmax(x K^T / sqrt(d_h)) V`` with learned keys and
values, or a prompt, whose tokens are keys and values at once under a gain ``g (d,)``; prefix and prompt read ``x``
itself as the query, head by head (the paper takes the attention's own query). What the tuner adds is zero at the
start: ``up``, ``V`` or ``g``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtpeft.api import Bottleneck, Count, Declarations, Method, OutputPart, Positive, Site, refuse_reshaped, zeros


class BesideOperation(OutputPart):
    """``y + s tuner(x)``."""

    def __init__(self, tuner: nn.Module, scale: float) -> None:
        super().__init__()
        self.tuner, self.scale = tuner, scale

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.scale * self.tuner(x)


class Attended(nn.Module):
    """Attention of ``x (..., d)`` to ``values (p, d)`` under ``keys (p, d)``.

    Without values the keys are both, and a gain starts at zero (zero prompts would get one gradient, and stay one).
    """

    def __init__(self, width: int, tokens: int, heads: int, values: bool) -> None:
        super().__init__()
        self.heads, self.keys = heads, nn.Parameter(torch.empty(tokens, width))
        self.values = zeros(tokens, width) if values else None
        self.gain = None if values else zeros(width)
        nn.init.xavier_uniform_(self.keys)

    def forward(self, x: Tensor) -> Tensor:
        values = self.keys if self.values is None else self.values
        query = x.reshape(-1, self.heads, x.shape[-1] // self.heads).transpose(0, 1)
        key, value = (t.unflatten(-1, (self.heads, -1)).transpose(0, 1).to(x.dtype) for t in (self.keys, values))
        read = F.scaled_dot_product_attention(query, key, value).transpose(0, 1).reshape(x.shape)
        return read if self.gain is None else self.gain * read


@dataclass
class ResTuning(Method):
    """Tuners beside attention and MLP."""

    declares = Declarations(
        category="addition",
        families="backbones with attentions or MLPs",
        paper="Res-Tuning, NeurIPS 2023, arXiv 2310.19859",
    )

    at: str = "attn mlp"
    tuner: Literal["adapter", "prefix", "prompt"] = "adapter"
    hidden: Count = 8
    tokens: Count = 10
    scale: Positive = 1.0

    def __post_init__(self) -> None:
        fits = self.tuner != "prefix" or self.tokens > 1
        self.require(fits, f"tokens is {self.tokens}", "a prefix tuner chooses among at least 2 keys")

    def part(self, site: Site) -> OutputPart:
        refuse_reshaped(site)
        if self.tuner == "adapter":
            return BesideOperation(Bottleneck(site.width, self.hidden), self.scale)
        heads = getattr(site.module, "num_heads", 1)
        return BesideOperation(Attended(site.width, self.tokens, heads, self.tuner == "prefix"), self.scale)
