"""O-LoRA (Findings of EMNLP 2023, arXiv 2310.14152): each task learns in directions orthogonal to those before.

``W + alpha / r * sum_s B_s A_s``; earlier branches are frozen, and the stage's own ``A_t`` gets the penalty
``orthogonality * sum_{s<t} sum_{jk} (A_s A_t^T)_{jk}^2``, beside ``decay * (||A_t||^2 + ||B_t||^2)``. Sums go over
sites. The released code takes absolute values for the paper's squares. Its ``decay`` is 0 in most of its runs; the
dropout of its branches (.1) is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from mtpeft.api import SHARED, Context, Count, Declarations, LowRankUpdate, NonNegative, Positive, Routine, Site
from mtpeft_plugins.continual._branches import BranchingMethod, freeze_earlier


@dataclass
class OLora(BranchingMethod):
    """LoRA for each task, kept orthogonal to earlier tasks' by a penalty; all of them act."""

    declares = Declarations(
        category="continual",
        mergeable=True,
        families="all",
        paper="O-LoRA, Findings of EMNLP 2023, arXiv 2310.14152",
    )

    at: str = "attn.q attn.v | mlp.fc1 mlp.fc2 | conv"
    rank: Count = 8
    alpha: Positive = 32.0
    orthogonality: NonNegative = 0.5
    decay: NonNegative = 0.0

    def part(self, site: Site) -> LowRankUpdate:
        return LowRankUpdate(site, self.rank, self.alpha / self.rank)

    def routine(self) -> Orthogonality:
        return Orthogonality(self)


class Orthogonality(Routine[OLora]):
    """Freezes earlier branches, and draws those of the stage away from their directions."""

    def begin_stage(self, context: Context) -> None:
        if self.method.scope != SHARED:
            freeze_earlier(context)

    def penalty(self, context: Context) -> Tensor | None:
        terms = []
        for own, earlier in self.pairs(context):
            overlap = sum((rows @ own.A.flatten(1).t()).square().sum() for rows in earlier)
            size = own.A.square().sum() + own.B.square().sum()
            terms.append(self.method.orthogonality * overlap + self.method.decay * size)
        return torch.stack(terms).sum() if terms else None

    def pairs(self, context: Context) -> Iterator[tuple[LowRankUpdate, list[Tensor]]]:
        """Each branch of the stage, with the ``A (r, in)`` of all earlier ones at its site."""
        placed = context.host.parts_of(self.method, context.tasks)
        for own in placed:
            if own.owner in context.tasks:
                others = [p for p in placed if p.site.name == own.site.name and p.owner in context.host.frozen]
                yield cast(LowRankUpdate, own.part), [cast(Tensor, p.part.A).detach().flatten(1) for p in others]
