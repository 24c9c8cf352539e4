"""From images to features and outputs of several tasks: as few passes of the backbone as their parts allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

from torch import Tensor

from mtpeft.backbone.features import Features
from mtpeft.peft.assembly import overrides_answer, overrides_encode
from mtpeft.peft.heads import Heads
from mtpeft.peft.method import Method, Passes
from mtpeft.peft.running import Running

Rows = Mapping[str, Sequence[int]]
"""The rows of a batch of images that each task is asked for, at least one."""


class Answering(Passes, Protocol):
    """The host, as this room sees it."""

    methods: dict[str, Method]
    heads: Heads
    running: Running


@dataclass
class Answer:
    """The features that a task's head read, and what it made of them."""

    features: Features
    outputs: Any


def rows_of(tasks: Sequence[str] | Rows, size: int) -> Rows:
    """``tasks`` as rows: bare names are asked for all ``size`` images."""
    return tasks if isinstance(tasks, Mapping) else dict.fromkeys(tasks, range(size))


def features_of(host: Answering, images: Tensor, rows: Rows) -> dict[str, Features]:
    """Each task's features of its rows: what several tasks share of an image runs once."""
    index = [row for own in rows.values() for row in own]
    forks = host.running.gradients is None and not any(map(overrides_encode, host.methods.values()))
    if forks and len(index) > len(images):
        features = host.running.each(images, rows)
    else:
        names = [task for task, own in rows.items() for _ in own]
        features = host(images if index == list(range(len(images))) else images[index], names)
    starts = dict(zip(rows, accumulate(map(len, rows.values()), initial=0), strict=False))
    return {task: features[starts[task] : starts[task] + len(own)] for task, own in rows.items()}


def answers_of(host: Answering, images: Tensor, rows: Rows) -> dict[str, Answer]:
    """Each task's features and outputs, the host being told the task of each."""
    features = features_of(host, images, rows)
    return {task: Answer(own, host.head_of(task)(own)) for task, own in features.items()}


def predictions_of(host: Answering, images: Tensor, rows: Rows) -> dict[str, Any]:
    """Each task's outputs as testing asks for them.

    In evaluation a method may combine several passes or logits (`Method.answer`), and tasks of a group are told
    apart by their shared head alone: the host is not told which one it is.
    """
    method = next(filter(overrides_answer, host.methods.values()), None)
    untold = {task for task in rows if not host.training and host.heads.in_group(task)}
    together = {} if method and not host.training else {t: own for t, own in rows.items() if t not in untold}
    outputs = {task: answer.outputs for task, answer in answers_of(host, images, together).items()} if together else {}
    for task in (task for task in rows if task not in together):
        own, told, head = images[list(rows[task])], None if task in untold else task, host.head_of(task)
        outputs[task] = method.answer(host, own, told, head) if method else head(host(own, told))
    return {task: outputs[task] for task in rows}
