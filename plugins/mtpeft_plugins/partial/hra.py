"""HRA (NeurIPS 2024, arXiv 2405.17484): the weight times a chain of Householder reflections of its inputs.

``W' = W H_1 ... H_r`` with ``H_i = I - 2 u_i u_i^T / ||u_i||^2``, an even number of them, equal in pairs at the start.
A pair is computed from the difference of its vectors (``u^T v = 1 - ||u - v||^2 / 2``), so that equal ones cancel bit
for bit. ``orthogonality`` weighs the paper's penalty, ``sum ||I - U^T U||^2`` over unit vectors; its limit, vectors
made orthogonal by Gram-Schmidt, is left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtpeft.api import Context, Declarations, Method, NonNegative, Routine, Site, WeightPart


def reflect_twice(weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """``W (I - 2 u u^T)(I - 2 v v^T)`` for unit vectors ``(in,)``."""
    change = u - v
    on_u = (weight @ u)[:, None]
    return weight + 2 * ((weight @ change)[:, None] * v - on_u * change - change.square().sum() * on_u * v)


class Reflections(WeightPart):
    """``U (in, r)``, its columns equal in pairs at the start."""

    def __init__(self, site: Site, rank: int) -> None:
        super().__init__()
        half = torch.empty(site.matrix_shape[1], rank // 2)
        nn.init.kaiming_uniform_(half, a=math.sqrt(5))
        self.U = nn.Parameter(half.repeat_interleave(2, dim=1))

    def units(self) -> Tensor:
        """``(in, r)``, columns of length one."""
        return self.U / self.U.norm(dim=0)

    def skewness(self) -> Tensor:
        """How far the unit vectors are from orthogonal: a squared Frobenius norm."""
        units = self.units()
        return (units.t() @ units - torch.eye(units.shape[1], device=units.device)).square().sum()

    def forward(self, weight: Tensor) -> Tensor:
        units, turned = self.units().unbind(1), weight.flatten(1)
        for u, v in zip(units[::2], units[1::2], strict=True):
            turned = reflect_twice(turned, u, v)
        return turned.view_as(weight)


@dataclass
class Hra(Method):
    """Reflects the inputs of each chosen weight ``rank`` times."""

    declares = Declarations(
        category="partial", mergeable=True, families="all", paper="HRA, NeurIPS 2024, arXiv 2405.17484"
    )

    at: str = "attn.q attn.v | mlp.fc1 mlp.fc2 | conv"
    rank: int = 8
    orthogonality: NonNegative = 0.0

    def __post_init__(self) -> None:
        even = self.rank >= 2 and self.rank % 2 == 0
        self.require(even, f"rank is {self.rank}", "reflections cancel in pairs: give an even rank of at least 2")

    def part(self, site: Site) -> WeightPart:
        return Reflections(site, self.rank)

    def routine(self) -> OrthogonalReflections | None:
        return OrthogonalReflections(self) if self.orthogonality else None


class OrthogonalReflections(Routine[Hra]):
    """The paper's penalty."""

    def penalty(self, context: Context) -> Tensor | None:
        parts = [placed.part for placed in context.parts(self.method)]
        terms = [part.skewness() for part in parts if isinstance(part, Reflections)]
        return self.method.orthogonality * torch.stack(terms).sum() if terms else None
