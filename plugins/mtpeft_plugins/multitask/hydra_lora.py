"""HydraLoRA (NeurIPS 2024, arXiv 2404.19245): one down-projection, several up-projections mixed by a router.

``y = W x + s sum_n g_n B_n A x``. The heads are one matrix ``[B_1 ... B_N]`` and the gates an outer product with
``A x``, so all of them cost one product. The released code recomputes ``A x`` with another dropout mask for every
head; here one is used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtpeft.api import Count, Declarations, Fraction, LowRankPart, Method, PerTask, Positive, Site, zeros


class ManyHeads(LowRankPart):
    """``A (r, in)`` Kaiming-uniform and ``B (out, N r)`` zero, its columns head by head."""

    def __init__(self, site: Site, rank: int, heads: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.heads, self.scale, self.dropout = heads, scale, dropout
        self.A = nn.Parameter(torch.empty(site.down_shape(rank)))
        self.B = zeros(site.out_features, heads * rank)
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def factors(self) -> tuple[Tensor, Tensor, float]:
        return self.A, self.B, self.scale


class TaskRouted(ManyHeads):
    """Gates of the task alone: ``softmax(w_t)``. The heads fold into one ``B``, so the part merges.

    ``w_t`` starts at random: with equal gates all heads would get one gradient, and stay one head for ever.
    """

    def __init__(self, site: Site, rank: int, heads: int, scale: float, dropout: float) -> None:
        super().__init__(site, rank, heads, scale, dropout)
        self.logits = PerTask(lambda: nn.Parameter(torch.randn(heads)))

    def factors(self) -> tuple[Tensor, Tensor, float]:
        heads = self.B.unflatten(1, (self.heads, -1))  # (out, N, r)
        return self.A, torch.einsum("n,onr->or", self.logits.current.softmax(0), heads), self.scale


class TokenRouted(ManyHeads):
    """Gates of each token: ``softmax(R x)``, or ``softmax(R x + w_t)`` with the task's own preference."""

    input_dependent = True

    def __init__(self, site: Site, rank: int, heads: int, scale: float, dropout: float, task: bool) -> None:
        super().__init__(site, rank, heads, scale, dropout)
        self.router = nn.Parameter(torch.empty(heads, site.in_features))
        nn.init.kaiming_uniform_(self.router, a=math.sqrt(5))
        self.logits = PerTask(lambda: zeros(heads)) if task else None

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        bias = self.logits.current if self.logits is not None else None
        gates = F.linear(x, self.router, bias).softmax(-1)  # (..., N)
        down = super().project(x, a)  # (..., r)
        return (gates.unsqueeze(-1) * down.unsqueeze(-2)).flatten(-2)


@dataclass
class HydraLora(Method):
    """LoRA with one ``A`` and several routed ``B``; ``route`` is by token, by task (then it merges), or both."""

    at: str = "linear"
    rank: Count = 4
    heads: Count = 3
    alpha: Positive = 32.0
    route: Literal["token", "task", "both"] = "token"
    dropout: Fraction = 0.0

    @property
    def declares(self) -> Declarations:
        return Declarations(
            category="multitask",
            mergeable=self.route == "task",
            needs_task_id=self.route != "token",
            families="transformers and ConvNeXt; by token, or with dropout, only where the linear layers are called",
            paper="HydraLoRA, NeurIPS 2024, arXiv 2404.19245",
        )

    def __post_init__(self) -> None:
        self.require(self.heads > 1, f"heads is {self.heads}", "a router chooses among at least 2; one head is lora")

    def part(self, site: Site) -> LowRankPart:
        scale = self.alpha / self.rank
        if self.route == "task":
            return TaskRouted(site, self.rank, self.heads, scale, self.dropout)
        return TokenRouted(site, self.rank, self.heads, scale, self.dropout, task=self.route == "both")
