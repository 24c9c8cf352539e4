"""SNELL (NeurIPS 2024, arXiv 2411.01800): a kernelised low-rank update, made sparse by competition.

The update is a difference of distances, ``D_ij = s (||p_i - q_j|| - ||p'_i - q'_j||)`` with vectors of ``rank / 2``
numbers: of high rank, and only its factors are trained. Its largest entries win: ``W' = W + D * |D|`` where ``|D|``
exceeds its own ``sparsity`` quantile, and ``W`` elsewhere. No start is both an identity and trainable, so as in the
released code the update starts small, not at zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtpeft.api import Declarations, Fraction, Method, Positive, Site, WeightPart


class SparseKernel(WeightPart):
    """``P (2, out, r / 2)`` and ``Q (2, in, r / 2)``, Kaiming-uniform."""

    def __init__(self, site: Site, rank: int, sparsity: float, scale: float) -> None:
        super().__init__()
        out, inputs = site.matrix_shape
        self.scale, self.losers = scale, int(sparsity * out * inputs)
        self.P = nn.Parameter(torch.empty(2, out, rank // 2))
        self.Q = nn.Parameter(torch.empty(2, inputs, rank // 2))
        for tensor in (self.P, self.Q):
            nn.init.kaiming_uniform_(tensor, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        near, far = torch.cdist(self.P, self.Q, compute_mode="donot_use_mm_for_euclid_dist").unbind()  # (out, in)
        return weight + self.compete(self.scale * (near - far)).view_as(weight)

    def compete(self, change: Tensor) -> Tensor:
        """Each entry times its size, but nothing of the smaller ones."""
        size = change.detach().abs()
        if self.losers:
            bar = size.flatten().kthvalue(self.losers).values
            size = torch.where(size > bar, size, 0)
        return change * size


@dataclass
class Snell(Method):
    """Sparse updates from a kernel of low-rank factors."""

    declares = Declarations(
        category="partial",
        identity_at_init=False,
        mergeable=True,
        families="all",
        paper="SNELL, NeurIPS 2024, arXiv 2411.01800",
    )

    at: str = "attn.q attn.k attn.v attn.proj mlp.fc1 mlp.fc2 | conv"
    rank: int = 8
    sparsity: Fraction = 0.9
    scale: Positive = 0.1

    def __post_init__(self) -> None:
        self.require(self.rank >= 2 and self.rank % 2 == 0, f"rank is {self.rank}", "give an even rank of at least 2")

    def part(self, site: Site) -> WeightPart:
        return SparseKernel(site, self.rank, self.sparsity, self.scale)
