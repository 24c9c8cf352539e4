"""EASE (CVPR 2024, arXiv 2403.12030): an adapter for each task, and prototypes in all of their subspaces.

An adapter ``s up(ReLU(down x))`` beside each MLP trains with its task, with a linear classifier of the task's classes
that is dropped afterwards; then it is frozen. A class of task ``t`` has a mean in the subspace of every adapter up to
``t``. In that of a later task ``b``, whose adapter its images never met, it is put together from ``b``'s classes ``j``:
``P_i,b = sum_j softmax_j(cos(P_i,t, P_j,t)) P_j,b``. The logit of class ``i`` is ``cos(A_t(x), P_i,t) +
alpha sum_b!=t cos(A_b(x), P_i,b)`` with ``alpha = 0.1``: a pass for each task where testing does not tell which.

The cosines of the equation are taken in each subspace by itself, as in the released code, which can also add the plain
features; the paper does not. The released code feeds the adapter from before the norm; here its input is the MLP's, as
in the equation. Tasks of one stage each have an adapter. The paper's tuning is SGD, rate 0.025 to 0.05, 20 epochs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mtpeft.api import (
    ClassSums,
    Context,
    Count,
    Declarations,
    FeaturesInfo,
    Fraction,
    NonNegative,
    ParallelBottleneck,
    Part,
    Passes,
    Positive,
    Site,
    refuse_reshaped,
)
from mtpeft_plugins.continual._closed_form import SolvedHead, SolvedMethod, Solving


def completed(means: Tensor, spaces: Tensor) -> tuple[Tensor, Tensor]:
    """Prototypes ``(K, T, C)`` where classes have none of their own, from those of the subspace's own classes.

    Args:
        means: ``(K, T, C)``.
        spaces: how many samples of a class were seen in each subspace, ``(K, T)``.

    Returns:
        All prototypes, and the index ``(K,)`` of the subspace that each class was learned in: the last it was seen in.
    """
    numbers = torch.arange(spaces.shape[1], device=spaces.device)
    own = torch.where(spaces > 0, numbers, -1).amax(1)
    filled = means.clone()
    for space in range(1, spaces.shape[1]):
        old, new = ((own >= 0) & (own < space)).nonzero().flatten(), (own == space).nonzero().flatten()
        for row in old.tolist() if len(new) else ():
            near = F.cosine_similarity(means[row, own[row]], means[new, own[row]], dim=-1).softmax(-1)
            filled[row, space] = near @ means[new, space]
    return filled, own


class SubspacePrototypes(SolvedHead):
    """``weight (K, T, C)``: prototypes; ``own (K,)``: the subspace of each class's task."""

    by_class = (*SolvedHead.by_class, "own")
    own: Tensor

    def __init__(self, info: FeaturesInfo, classes: Sequence[str], alpha: float, scale: float) -> None:
        super().__init__(info, classes, ClassSums(len(classes), info.pooled), 1, info.pooled)
        self.register_buffer("own", torch.zeros(len(classes), dtype=torch.int64))
        self.alpha, self.scale = alpha, scale

    def solved(self, total: ClassSums, stage: ClassSums) -> Tensor:
        filled, self.own = completed(total.means(), total.spaces)
        return filled

    def logits(self, x: Tensor) -> Tensor:
        """``x (B, T, C)``; of subspaces that no class has a prototype in yet, no notice is taken."""
        spaces = self.weight.shape[1]
        cosines = torch.einsum("btc,ktc->bkt", F.normalize(x[:, :spaces], dim=-1), F.normalize(self.weight, dim=-1))
        own = torch.arange(spaces, device=x.device) == self.own[:, None]
        return self.scale * (cosines * torch.where(own, 1.0, self.alpha)).sum(-1)


@dataclass
class Ease(SolvedMethod):
    """An adapter for each task, and prototypes of all classes in the subspaces of all adapters."""

    declares = Declarations(
        category="continual",
        passes_per_task=True,
        accepts=("cls",),
        families="backbones with MLP blocks",
        paper="EASE, CVPR 2024, arXiv 2403.12030",
    )

    scope: Literal["task"] = "task"
    at: str = "mlp"
    hidden: Count = 64
    adapter_scale: Positive = 0.1
    dropout: Fraction = 0.1
    alpha: NonNegative = 0.1
    scale: Positive = 16.0

    def owners(self, task: str | None, seen: Sequence[str]) -> tuple[str, ...]:
        return () if task is None else (task,)

    def part(self, site: Site) -> Part:
        refuse_reshaped(site)
        return ParallelBottleneck(site.width, self.hidden, self.adapter_scale, self.dropout, norm=False)

    def classifier(self, info: FeaturesInfo, classes: Sequence[str]) -> SubspacePrototypes:
        return SubspacePrototypes(info, classes, self.alpha, self.scale)

    def pooled(self, host: Passes, images: Tensor, task: str | None, head: Any) -> Tensor:
        """``(B, T, C)``: of the task, or of all that share the head, in the order they were met."""
        tasks = [name for name in host.tasks if host.head_of(name) is head] if task is None else [task]
        return torch.stack([host(images, name).pooled for name in tasks], 1)

    def routine(self) -> Isolated:
        return Isolated(self)


@dataclass(eq=False)
class Isolated(Solving):
    """A task's adapter trains no more after its stage."""

    @torch.no_grad()
    def end_stage(self, context: Context) -> None:
        super().end_stage(context)
        for task in context.tasks:
            context.host.freeze(task)
