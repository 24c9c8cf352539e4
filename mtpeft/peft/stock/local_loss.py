"""Local losses: in class-incremental learning, only the classes of the stage compete in training."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mtpeft.peft.routine import Context

_APART = 100.0
"""How far below the probability of all current classes, in logarithms, another class stands."""


def local_logits(context: Context, task: str, outputs: Any) -> Any:
    """Masks the classes of earlier stages, for `Routine.adjust`: cross-entropy over the current classes only (L2P,
    CVPR 2022, arXiv 2112.08654).

    Published code masks with -inf. Here a masked class gets a probability of e^-100, which vanishes beside 1 in single
    and double precision, gradients included; yet label smoothing, and losses that give other classes no weight, stay
    finite.

    Args:
        outputs: logits ``(B, K)`` of the task's head. Others (boxes, maps), and a head all of whose classes are
            current, are given back as they are.
    """
    names = getattr(context.host.head_of(task), "classes", ())
    others = [index for index, name in enumerate(names) if name not in _current(context, task, names)]
    if not others or not isinstance(outputs, Tensor) or outputs.shape[1:] != (len(names),):
        return outputs
    own = [index for index in range(len(names)) if index not in others]
    masked = outputs.clone()
    masked[:, others] = outputs[:, own].logsumexp(-1, keepdim=True) - _APART
    return masked


def _current(context: Context, task: str, names: tuple[str, ...]) -> set[str]:
    """The classes of the stage's tasks that share the head of ``task``; all of them where a task's are not known."""
    heads = context.host.head_names
    tasks = [other for other in context.tasks if heads.get(other) == heads[task]]
    return {name for other in tasks for name in context.classes.get(other, names)}
