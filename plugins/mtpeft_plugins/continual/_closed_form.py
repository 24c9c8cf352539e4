"""What methods with solved heads share: a head, the passes that count, and when it is solved.

Features of a stage's training images are counted in plain, unaugmented passes: at the stage's beginning where nothing
trains in it, at its end where something does; until then, each evaluation counts them as they are. A task is counted
once. Where parts train, a linear classifier of the stage's own new classes gives them their loss, and is dropped with
the stage: cross-entropy is local, so no row of an old class moves.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtpeft.api import (
    SHARED,
    Context,
    Features,
    FeaturesInfo,
    Head,
    Method,
    Part,
    Passes,
    Routine,
    Site,
    Statistics,
    labelled,
    with_rows,
)

_APART = -1e4  # a logit whose probability is 0; finite, so that label smoothing stays so


class Proxy(nn.Module):
    """A linear classifier of the classes ``rows (N,)``, for the loss of parts that train; other logits are low."""

    rows: Tensor

    def __init__(self, width: int, rows: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("rows", torch.tensor(rows, dtype=torch.int64))
        self.weight = nn.Parameter(torch.empty(len(rows), width).uniform_(-1, 1) / width**0.5)
        self.bias = nn.Parameter(torch.zeros(len(rows)))

    def forward(self, x: Tensor, classes: int) -> Tensor:
        """``x (B, C)`` to logits ``(B, classes)``."""
        logits = F.linear(x, self.weight, self.bias)
        return logits.new_full((len(x), classes), _APART).index_copy(1, self.rows, logits)

    @torch.no_grad()
    def keep(self, old: Proxy) -> None:
        """Take over the rows of a proxy of the first classes of these."""
        self.weight[: len(old.rows)], self.bias[: len(old.rows)] = old.weight, old.bias


class SolvedHead(Head):
    """Logits of weights that are solved from statistics; in training, and before there are any, a proxy's.

    Attributes:
        statistics: of all tasks that were counted.
        weight: one row for each class.
        met: which classes the weights know, ``(K,) bool``; another one is never the answer.
        by_class: further buffers with a row for each class.
    """

    by_class: tuple[str, ...] = ("weight", "met")
    weight: Tensor
    met: Tensor

    def __init__(self, info: FeaturesInfo, classes: Sequence[str], statistics: Statistics, *shape: int) -> None:
        super().__init__()
        self.classes, self.width = tuple(classes), info.pooled
        self.statistics = statistics
        self.register_buffer("weight", torch.zeros(len(classes), *shape))
        self.register_buffer("met", torch.zeros(len(classes), dtype=torch.bool))
        self.proxy: Proxy | None = Proxy(self.width, range(len(classes)))

    @abstractmethod
    def solved(self, total: Any, stage: Any) -> Tensor:
        """The weights for the statistics of all samples; ``stage`` are those of the stage's alone."""

    @abstractmethod
    def logits(self, x: Tensor) -> Tensor:
        """What `lift` gave to logits ``(B, K)``."""

    def lift(self, pooled: Tensor) -> Tensor:
        """Features to what is counted and scored."""
        return pooled

    def forward(self, features: Features) -> Tensor:
        if self.proxy is not None and self.training:
            return self.proxy(features.pooled, len(self.classes))
        return self.score(features.pooled)

    def score(self, pooled: Tensor) -> Tensor:
        """What `SolvedMethod.pooled` gave to logits ``(B, K)``; the proxy sees the newest features of several."""
        if self.proxy is not None and not self.met.any():
            return self.proxy(pooled.flatten(1)[:, -self.width :], len(self.classes))
        logits = self.logits(self.lift(pooled))
        return logits.masked_fill(~self.met, torch.finfo(logits.dtype).min)

    def solve(self, total: Statistics, stage: Statistics) -> None:
        self.met = total.count > 0
        self.weight = self.solved(total, stage).to(self.weight.dtype)

    def extend(self, classes: Sequence[str], info: FeaturesInfo | None = None) -> None:
        before, new = len(self.classes), tuple(name for name in classes if name not in self.classes)
        self.classes += new
        self.statistics.grow(len(new))
        for name in self.by_class:
            setattr(self, name, with_rows(getattr(self, name), len(new)))
        old, first = self.proxy, before if new else 0
        self._open(range(first if old is None else before - len(old.rows), len(self.classes)))
        if old is not None and self.proxy is not None:
            self.proxy.keep(old)

    def fit(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.proxy = None
        if "proxy.rows" in shapes:
            self._open(range(*shapes["proxy.rows"]))
        super().fit(shapes)

    def _open(self, rows: Sequence[int]) -> None:
        self.proxy = Proxy(self.width, rows).to(self.weight.device, self.weight.dtype).train(self.training)


@dataclass
class SolvedMethod(Method):
    """A method without parts of its own whose head is solved; derive, and say which head."""

    def part(self, site: Site) -> Part | None:
        return None

    def pooled(self, host: Passes, images: Tensor, task: str | None, head: Any) -> Tensor:
        """The features ``(B, ...)`` that are counted, and scored at test time."""
        return host(images, task).pooled

    def answer(self, host: Passes, images: Tensor, task: str | None, head: Any) -> Tensor:
        return head.score(self.pooled(host, images, task, head))

    def routine(self) -> Solving:
        return Solving(self)


@dataclass(eq=False)
class Solving(Routine[SolvedMethod]):
    """Counts each task once, and solves the heads.

    Attributes:
        counted: the tasks whose samples the heads' statistics hold.
    """

    counted: set[str] = field(default_factory=set)

    @torch.no_grad()
    def begin_stage(self, context: Context) -> None:
        if not _moving(context):
            self._finish(context)

    def settle(self, context: Context) -> None:
        for head, tasks in self._uncounted(context):
            stage, total = self._count(context, head, tasks), head.statistics.fresh()
            total.merge(head.statistics)
            total.merge(stage)
            head.solve(total, stage)

    @torch.no_grad()
    def end_stage(self, context: Context) -> None:
        self._finish(context)

    def _finish(self, context: Context) -> None:
        """Features move no more: keep what they count, and let nothing of the heads train."""
        for head, tasks in self._uncounted(context):
            stage = self._count(context, head, tasks)
            head.statistics.merge(stage)
            head.solve(head.statistics, stage)
            self.counted |= set(tasks)
        for head in _heads(context):
            head.proxy = None

    def _uncounted(self, context: Context) -> Iterator[tuple[SolvedHead, list[str]]]:
        """The heads of the stage's tasks, and which of these are to be counted."""
        for head, tasks in _heads(context).items():
            left = [task for task in tasks if task not in self.counted]
            if left:
                yield head, left

    def _count(self, context: Context, head: SolvedHead, tasks: Sequence[str]) -> Statistics:
        host, stage = context.host, head.statistics.fresh()
        for task, images, targets in context.batches(train=False, tasks=tasks):
            rows, labels = labelled(head.classes, targets)
            told = None if host.heads.in_group(task) else task
            x = head.lift(self.method.pooled(host, images, told, head)[rows])
            stage.add(x, labels.to(x.device))
        return stage

    def state(self) -> dict[str, Tensor]:
        return {task: torch.ones((), dtype=torch.bool) for task in sorted(self.counted)}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.counted = set(state)


@dataclass(eq=False)
class FirstStageOnly(Solving):
    """From the second stage on, what all tasks share trains no more (first-session adaptation)."""

    @torch.no_grad()
    def begin_stage(self, context: Context) -> None:
        if self.counted:
            context.host.freeze(SHARED)
        super().begin_stage(context)


def _heads(context: Context) -> dict[SolvedHead, list[str]]:
    """The heads of the stage's tasks, each with these."""
    heads: dict[SolvedHead, list[str]] = {}
    for task in context.tasks:
        heads.setdefault(context.host.head_of(task), []).append(task)
    return heads


def _moving(context: Context) -> bool:
    """Whether anything but heads trains in the stage."""
    own = {id(parameter) for head in _heads(context) for parameter in head.parameters()}
    return any(id(parameter) not in own for parameter in context.host.trainable(context.tasks).values())
