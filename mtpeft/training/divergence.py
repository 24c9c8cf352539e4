"""Stops a training that has left the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import torch
from torch import Tensor

from mtpeft.errors import Diverged
from mtpeft.training.position import Position

_HINT = (
    "try a lower learning rate (--set optimizer.lr=...), a smaller optimizer.clip_norm, a longer optimizer.warmup, "
    'or optimizer.precision="fp32"; the last saved state is intact'
)


def check_losses(losses: Sequence[tuple[str, Tensor]], at: Position) -> list[float]:
    """The losses of an update's batches as numbers, by task, before a routine or the optimizer acts on what they gave.

    They leave the device together: it is waited for once in an update, whatever the number of batches.

    Raises:
        Diverged: naming the task and the update, where one is NaN or infinite.
    """
    values: list[float] = torch.stack([loss.detach().float() for _, loss in losses]).tolist()
    for (task, _), value in zip(losses, values, strict=True):
        if not isfinite(value):
            raise Diverged(
                f'the loss of task "{task}" is {value} at update {at.step} of stage {at.stage + 1}', hint=_HINT
            )
    return values


def check_gradients(norm: float, at: Position) -> None:
    """
    Raises:
        Diverged: where a gradient is not finite, before it reaches a weight.
    """
    if not isfinite(norm):
        tasks = ", ".join(at.tasks)
        raise Diverged(f"the gradient of {tasks} is {norm} at update {at.step} of stage {at.stage + 1}", hint=_HINT)
