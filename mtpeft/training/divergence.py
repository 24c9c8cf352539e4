"""Stops a training that has left the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

import torch
from torch import Tensor

from mtpeft.errors import Diverged
from mtpeft.training.position import Position

_HINT = (
    "try a lower learning rate (--set optimizer.lr=...), a smaller optimizer.clip_norm, a longer optimizer.warmup, "
    'or optimizer.precision="fp32"; the last saved state is intact'
)


def check_losses(losses: Mapping[str, Tensor], at: Position) -> dict[str, float]:
    """The losses as numbers.

    Raises:
        Diverged: naming the task and the update, where one is not finite.
    """
    values = torch.stack([loss.detach().float() for loss in losses.values()]).tolist()
    found = dict(zip(losses, values, strict=True))
    for name, value in found.items():
        if not isfinite(value):
            raise Diverged(
                f'the loss of task "{name}" is {value} at update {at.step} of stage {at.stage + 1}', hint=_HINT
            )
    return found


def check_gradients(norm: float, at: Position) -> None:
    """
    Raises:
        Diverged: where a gradient is not finite, before it reaches a weight.
    """
    if not isfinite(norm):
        tasks = ", ".join(at.tasks)
        raise Diverged(f"the gradient of {tasks} is {norm} at update {at.step} of stage {at.stage + 1}", hint=_HINT)
