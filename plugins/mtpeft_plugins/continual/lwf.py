"""LwF (ECCV 2016, arXiv 1606.09282): on new images, the old outputs stay what they were. No old data is needed.

``L(new) + strength * sum_k -y'_k log p'_k`` for each earlier task, with ``y'`` and ``p'`` the old and the present
softmax of its logits at a temperature (2), on the images of the batch. The old outputs come from a frozen copy of what
trains (parts and heads, not the backbone), which is put in its place for a pass. In a group, earlier classes are one
old task, and the new loss is over the stage's own classes. A method without parts: ``lora+lwf``.

Where ours differs: the paper records the old outputs before training, which holds for images that are not augmented;
and it trains the new head alone first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mtpeft.api import (
    Context,
    Declarations,
    Method,
    NonNegative,
    Part,
    Positive,
    Routine,
    Site,
    Targets,
    TaskBatch,
    evaluating,
    local_logits,
)


@dataclass
class Lwf(Method):
    """Distils the model as it was before the stage, on the stage's own images."""

    declares = Declarations(
        category="continual",
        mergeable=True,
        families="all",
        accepts=("cls",),
        paper="Learning without Forgetting, ECCV 2016, arXiv 1606.09282",
    )

    strength: NonNegative = 1.0
    temperature: Positive = 2.0

    def part(self, site: Site) -> Part | None:
        return None

    def routine(self) -> Distillation:
        return Distillation(self)


@dataclass(eq=False)
class Distillation(Routine[Lwf]):
    """Keeps what trained before the stage, while the stage lasts.

    Attributes:
        teacher: its tensors, by the names of `Host.trainable`.
    """

    teacher: dict[str, Tensor] = field(default_factory=dict)

    def begin_stage(self, context: Context) -> None:
        old = self.old_tasks(context)
        trained = context.host.trainable(old) if old else {}
        self.teacher = {name: parameter.detach().clone() for name, parameter in trained.items()}

    def trains(self, context: Context) -> Sequence[str]:
        return self.old_tasks(context)

    def adjust(self, context: Context, task: str, outputs: Any, targets: Targets) -> tuple[Any, Targets]:
        return (local_logits(context, task, outputs) if self.method.strength else outputs), targets

    def penalty(self, context: Context) -> Tensor | None:
        terms = [self.distilled(context, batch) for batch in context.batch if self.teacher]
        return self.method.strength * torch.stack(terms).mean() if terms else None

    def end_stage(self, context: Context) -> None:
        self.teacher = {}

    def state(self) -> dict[str, Tensor]:
        return dict(self.teacher)

    def restore(self, state: dict[str, Tensor]) -> None:
        self.teacher = dict(state)

    def old_tasks(self, context: Context) -> tuple[str, ...]:
        """Earlier tasks, the last one of each head; none where the strength is 0."""
        earlier = [task for task in context.seen if task not in context.tasks]
        heads = {context.host.head_names[task]: task for task in earlier}
        return tuple(heads.values()) if self.method.strength else ()

    def distilled(self, context: Context, batch: TaskBatch) -> Tensor:
        """The distance of a batch's outputs for the old tasks from the teacher's."""
        host, terms = context.host, []
        for task, wanted in self.taught(context, batch.images).items():
            same_head = host.head_names[task] == host.head_names[batch.task]
            outputs = batch.outputs if same_head else host.predict(batch.images, task)
            old = _old_rows(context, task)
            terms.append(softened(outputs[:, old], wanted[:, old], self.method.temperature))
        return torch.stack(terms).sum()

    @torch.no_grad()
    def taught(self, context: Context, images: Tensor) -> dict[str, Tensor]:
        """The teacher's logits ``(B, K)`` for each old task."""
        old = self.old_tasks(context)
        with evaluating(context.host), _standing_in(context.host.trainable(old), self.teacher):
            return {task: context.host.predict(images, task) for task in old}


def softened(outputs: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """The mean cross-entropy of two softmaxes at a temperature."""
    own = (outputs.float() / temperature).log_softmax(1)
    return -((wanted.float() / temperature).softmax(1) * own).sum(1).mean()


def _old_rows(context: Context, task: str) -> list[int]:
    """The outputs of a task's head that stand for no class of this stage; all, where it has the same classes again."""
    heads = context.host.head_names
    current = {c for t, own in context.classes.items() if heads.get(t) == heads[task] for c in own}
    names = context.host.head_of(task).classes
    return [row for row, name in enumerate(names) if name not in current] or list(range(len(names)))


@contextmanager
def _standing_in(parameters: dict[str, torch.nn.Parameter], values: dict[str, Tensor]) -> Iterator[None]:
    """While inside, parameters have other values; what was computed before keeps its gradient."""
    before = {name: parameter.data for name, parameter in parameters.items() if name in values}
    try:
        for name, data in before.items():
            parameters[name].data = values[name].to(data.device)
        yield
    finally:
        for name, data in before.items():
            parameters[name].data = data
