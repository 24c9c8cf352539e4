"""RepAdapter (arXiv 2302.08106): a linear adapter before attention and before the MLP, which folds into their weights.

``x' = x + s (B (A x + a) + c)`` before ``qkv`` and ``fc1``; ``B`` is block-diagonal with ``g`` groups. Merged: ``W'
= W (I + s B A)``, ``b' = b + s W (B a + c)``. ``B`` and ``c`` start at zero. Where q, k and v are separate layers
each gets an adapter of its own. The released merge fails for one group and on ConvNeXt; here every linear layer
folds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtpeft.api import (
    Count,
    Declarations,
    Fraction,
    InputPart,
    Method,
    NotApplicable,
    Part,
    Positive,
    Site,
    WeightPart,
    zeros,
)


class LinearAdapter(nn.Module):
    """``A (h, d)`` Xavier-uniform, ``a (h,)``, ``B`` as ``(g, d / g, h / g)``, ``c (d,)``."""

    def __init__(self, width: int, hidden: int, groups: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.down = nn.Linear(width, hidden)
        self.up, self.shift = zeros(groups, width // groups, hidden // groups), zeros(width)
        self.scale, self.dropout = scale, dropout
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def change(self, x: Tensor) -> Tensor:
        hidden = F.dropout(self.down(x), self.dropout, self.training).unflatten(-1, (len(self.up), -1))
        return self.scale * (torch.einsum("...gh,gdh->...gd", hidden, self.up).flatten(-2) + self.shift)

    def affine(self) -> tuple[Tensor, Tensor]:
        """``s B A`` and ``s (B a + c)``."""
        up = torch.block_diag(*self.up)
        return self.scale * (up @ self.down.weight), self.scale * (up @ self.down.bias + self.shift)


class BeforeModule(InputPart):
    def __init__(self, adapter: LinearAdapter) -> None:
        super().__init__()
        self.adapter = adapter

    def forward(self, x: Tensor) -> Tensor:
        return x + self.adapter.change(x)

    def affine(self) -> tuple[Tensor, Tensor]:
        matrix, shift = self.adapter.affine()
        return matrix + torch.eye(len(matrix), device=matrix.device), shift


class InWeight(WeightPart):
    """The same adapter where a backbone reads the weight without calling the layer."""

    def __init__(self, adapter: LinearAdapter) -> None:
        super().__init__()
        self.adapter = adapter

    def forward(self, weight: Tensor) -> Tensor:
        return weight + weight @ self.adapter.affine()[0]

    def bias(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        shift = weight @ self.adapter.affine()[1]
        return shift if bias is None else bias + shift


@dataclass
class Repadapter(Method):
    """Linear adapters before attention and MLP that merge; ``at = "attn.qkv"`` adapts attention alone."""

    declares = Declarations(
        category="addition",
        mergeable=True,
        families="all; before the convolutions of blocks where there are no linear layers",
        paper="RepAdapter, arXiv 2302.08106",
    )

    at: str = "attn.qkv attn.q attn.kv attn.k attn.v mlp.fc1 | conv"
    hidden: Count = 8
    groups: Count = 2
    scale: Positive = 1.0
    dropout: Fraction = 0.0

    def __post_init__(self) -> None:
        fits = self.hidden % max(self.groups, 1) == 0
        self.require(fits, f"hidden is {self.hidden}", f"the bottleneck is a multiple of the {self.groups} groups")

    def part(self, site: Site) -> Part | None:
        if "slice" in site.tags or site.block is None:
            return None
        if site.in_features % self.groups:
            raise NotApplicable(
                f"repadapter splits the {site.in_features} inputs of {site.name} into {self.groups} groups"
            )
        adapter = LinearAdapter(site.in_features, self.hidden, self.groups, self.scale, self.dropout)
        if not site.bypassed:
            return BeforeModule(adapter)
        if self.dropout:
            raise NotApplicable(
                f"repadapter cannot drop activations at {site.name}, whose weight {site.model.family} reads directly",
                hint="set dropout = 0",
            )
        return InWeight(adapter)
