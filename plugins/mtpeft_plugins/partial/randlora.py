"""RandLoRA (ICLR 2025, arXiv 2502.00987): a full-rank sum of frozen random low-rank matrices with trained diagonals.

``W' = W + s sum_j B_j diag(l_j) A diag(g_j)`` with ``n = ceil(min(out, in) / r)`` terms, ``l`` zero and ``g`` ``1 /
max(out, in)`` at the start; where a weight has fewer outputs than inputs it is the transpose of that. ``A`` and the
``B_j`` are shared by all layers, have unit variance and follow from ``seed``, so they are not saved. HF PEFT pairs the
rows of ``A`` with the columns of ``B`` in another order, which is the same up to a permutation of the random ``B``. The
scale is 10 unless ``alpha`` is given; HF PEFT's is 20, at which narrow backbones diverge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtpeft.api import Count, Declarations, FixedSeed, Method, Positive, Site, WeightPart, fixed_uniform, zeros


class Bases(nn.Module):
    """``A (r, smaller side)`` and ``B (n, larger side, r)``, for the largest of all sites."""

    def __init__(self, sites: Sequence[Site], rank: int, seed: int) -> None:
        super().__init__()
        shapes = [site.matrix_shape for site in sites]
        small, large = max(min(s) for s in shapes), max(max(s) for s in shapes)
        drawn = {"A": (rank, small), "B": (math.ceil(small / rank), large, rank)}
        for index, (name, shape) in enumerate(drawn.items()):
            unit = math.sqrt(3) * (2 * fixed_uniform(2 * seed + index, *shape) - 1)
            self.register_buffer(name, unit, persistent=False)


class RandomSum(WeightPart):
    """``l (n, r)`` and ``g (n, smaller side)``."""

    def __init__(self, site: Site, rank: int, scale: float) -> None:
        super().__init__()
        out, inputs = site.matrix_shape
        terms = math.ceil(min(out, inputs) / rank)
        self.scale, self.wide = scale, out < inputs
        self.large = max(out, inputs)
        self.l = zeros(terms, rank)
        self.g = nn.Parameter(torch.full((terms, min(out, inputs)), 1 / self.large))

    def forward(self, weight: Tensor) -> Tensor:
        a, b = self.common.A[:, : self.g.shape[1]], self.common.B[: len(self.l), : self.large]
        rows = self.l[:, :, None] * a * self.g[:, None]  # (n, r, small)
        change = b.transpose(0, 1).flatten(1) @ rows.flatten(0, 1)  # (large, small)
        return weight + self.scale * (change.t() if self.wide else change).reshape(weight.shape)


@dataclass
class Randlora(Method):
    """Diagonals for random matrices that together have full rank; the smaller the rank, the more parameters."""

    declares = Declarations(
        category="partial",
        mergeable=True,
        families="all",
        learning_rate=1e-4,
        paper="RandLoRA, ICLR 2025, arXiv 2502.00987",
    )

    at: str = "attn.q attn.v | mlp.fc1 mlp.fc2 | conv"
    rank: Count = 32
    alpha: Positive | None = None
    seed: FixedSeed = 0

    def common(self, sites: Sequence[Site]) -> nn.Module:
        return Bases(sites, self.rank, self.seed)

    def part(self, site: Site) -> WeightPart:
        return RandomSum(site, self.rank, 10.0 if self.alpha is None else self.alpha / self.rank)
