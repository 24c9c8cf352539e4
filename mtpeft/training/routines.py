"""The routines of a run's methods: called in the order of the methods, in the mode that each hook promises."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from mtpeft.backbone.extract import evaluating
from mtpeft.peft.routine import Context, Routine, Targets


class Routines:
    """All routines of a host in one stage.

    Args:
        context: what their hooks see.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.all = [cast("Routine[Any]", routine) for routine in context.host.routines.values()]

    @property
    def watch(self) -> bool:
        """Whether one wants the batches of a stage in which nothing trains."""
        return any(routine.watches for routine in self.all)

    def begin_stage(self) -> None:
        """`Routine.calibrate` of all, then `Routine.begin_stage` of all."""
        with evaluating(self.context.host):
            for routine in self.all:
                routine.calibrate(self.context)
            for routine in self.all:
                routine.begin_stage(self.context)

    def trains(self) -> tuple[str, ...]:
        """Further tasks that train."""
        return tuple(dict.fromkeys(task for routine in self.all for task in routine.trains(self.context)))

    def begin_update(self) -> bool:
        """Whether other tensors train from now on."""
        changed = [routine.begin_update(self.context) for routine in self.all]
        return any(changed)

    def adjust(self, task: str, outputs: Any, targets: Targets) -> tuple[Any, Targets]:
        """Outputs and targets as the loss is to see them; what a routine runs for that is no task's own batch."""
        with _ungathered(self.context.host.running):
            for routine in self.all:
                outputs, targets = routine.adjust(self.context, task, outputs, targets)
        return outputs, targets

    def penalties(self) -> Iterator[Tensor]:
        """The scalar of each routine that gives one; each task's gradients are not kept apart meanwhile."""
        for routine in self.all:
            with _ungathered(self.context.host.running):
                penalty = routine.penalty(self.context)
            if penalty is not None:
                yield penalty

    def after_backward(self) -> None:
        """`Routine.after_backward` of all."""
        for routine in self.all:
            routine.after_backward(self.context)

    def after_step(self) -> None:
        """`Routine.after_step` of all."""
        for routine in self.all:
            routine.after_step(self.context)

    @torch.no_grad()
    def settle(self) -> None:
        """`Routine.settle`, in evaluation mode."""
        with evaluating(self.context.host):
            for routine in self.all:
                routine.settle(self.context)

    def end_stage(self) -> None:
        """`Routine.end_stage`, in evaluation mode."""
        with evaluating(self.context.host):
            for routine in self.all:
                routine.end_stage(self.context)


@contextmanager
def _ungathered(running: Any) -> Iterator[None]:
    """Passes inside have the gradients of all tasks together."""
    kept, running.gradients = running.gradients, None
    try:
        yield
    finally:
        running.gradients = kept


def tasks_of(tasks: Sequence[str], more: Sequence[str]) -> tuple[str, ...]:
    """Tasks, each once."""
    return tuple(dict.fromkeys((*tasks, *more)))
