"""Hydra (Neural Networks 2024, arXiv 2309.06922): a parallel and a sequential low-rank branch at one linear layer.

With ``y0 = W x + b``: ``y = y0 + s (B_p (A_p x + a_p) + b_p) + s (B_s (A_s y0 + a_s) + b_s)``. All of it is linear, so
it is run as one weight, ``W' = (I + s B_s A_s) W + s B_p A_p`` and the bias that goes with it. (Not HydraLoRA, which is
``hydra-lora``.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtpeft.api import Count, Declarations, Method, Positive, Site, WeightPart, zeros


class Branch(nn.Module):
    """``A (r, in)`` xavier, ``a (r,)``, ``B (out, r)`` and ``b (out,)`` zero."""

    def __init__(self, inputs: int, out: int, rank: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, inputs))
        self.a, self.B, self.b = zeros(rank), zeros(out, rank), zeros(out)
        nn.init.xavier_uniform_(self.A)

    def shift(self) -> Tensor:
        return self.B @ self.a + self.b


class TwoBranches(WeightPart):
    """On a convolution the parallel branch is k x k to ``r``, and the rest 1 x 1."""

    def __init__(self, site: Site, rank: int, scale: float) -> None:
        super().__init__()
        out, inputs = site.matrix_shape
        self.scale = scale
        self.parallel, self.sequential = Branch(inputs, out, rank), Branch(out, out, rank)

    def forward(self, weight: Tensor) -> Tensor:
        flat, p, s = weight.flatten(1), self.parallel, self.sequential
        return (flat + self.scale * (p.B @ p.A + s.B @ (s.A @ flat))).view_as(weight)

    def bias(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        p, s = self.parallel, self.sequential
        shift = self.scale * (p.shift() + s.shift())
        return shift if bias is None else bias + shift + self.scale * (s.B @ (s.A @ bias))


@dataclass
class Hydra(Method):
    """Parallel and sequential low-rank branches at the output projections of attention and MLP."""

    declares = Declarations(
        category="partial",
        mergeable=True,
        families="all; merges where timm has a bias to fold the shift into",
        paper="Hydra, Neural Networks 2024, arXiv 2309.06922",
    )

    at: str = "attn.proj mlp.fc2 | conv"
    rank: Count = 2
    scale: Positive = 1.0

    def part(self, site: Site) -> WeightPart:
        return TwoBranches(site, self.rank, self.scale)
