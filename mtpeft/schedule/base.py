"""What all schedules share: settings, stages, and the order of events within a stage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from random import Random

from mtpeft.errors import UsageError, did_you_mean
from mtpeft.keyed_random import generator
from mtpeft.schedule.events import Batch, Begin, End, Evaluate, Event, Update
from mtpeft.settings import Count, Whole

DEFAULT_EPOCHS = 10


@dataclass(frozen=True)
class TaskSize:
    """What a schedule knows of a task: training samples, and samples per update."""

    count: int
    batch_size: int

    @property
    def batches(self) -> int:
        """Updates in which each sample is met once."""
        return -(-self.count // self.batch_size)


@dataclass
class Schedule(ABC):
    """Subclass as a dataclass: the fields are the settings of a recipe's ``[schedule]`` table.

    Attributes:
        steps: updates per stage; excludes ``epochs``.
        epochs: epochs per stage, 10 where neither is given. An epoch of a stage that mixes its tasks in every update
            ends when its largest task, counted in batches, has been met once: ``max(ceil(count / batch_size))``
            updates; smaller tasks go round again within it. A stage of one task is the ordinary case of this. Where
            each update draws one task, an epoch is the sum instead: ``sum(ceil(count / batch_size))`` updates.
        accumulate: batches into which each update's samples are divided, as evenly as they go.
        eval_every: updates between evaluations of the stage's tasks on ``val``; there is always one at the stage's end.
        evaluate_before: at each stage's end, evaluate the next stage's tasks too: forward transfer.
        probe_every: updates between evaluations of all tasks seen on the split of the result matrix, inside a stage
            that follows another: the stability gap. 0 for none.
        stages: which tasks each stage trains, every task exactly once; empty for the kind's own.
        order: the tasks in the order of training; empty for the recipe's.
    """

    steps: Count | None = None
    epochs: Count | None = None
    accumulate: Count = 1
    eval_every: Whole = 0
    evaluate_before: bool = False
    probe_every: Whole = 0
    stages: list[list[str]] = field(default_factory=list)
    order: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        both = self.steps is not None and self.epochs is not None
        _check(not both, f"steps = {self.steps} and epochs = {self.epochs} exclude each other", "give one of them")
        _check(not (self.stages and self.order), "stages and order exclude each other", "stages already are in order")
        for index, stage in enumerate(self.stages):
            _check(bool(stage), f"stage {index} of stages names no task", "name at least one, or leave the stage out")

    @abstractmethod
    def default_stages(self, names: tuple[str, ...]) -> list[tuple[str, ...]]:
        """The stages where the settings spell out none; ``names`` are all tasks in order."""

    @abstractmethod
    def epoch(self, sizes: Mapping[str, TaskSize]) -> int:
        """Updates in one epoch of a stage with these tasks."""

    @abstractmethod
    def quotas(self, sizes: Mapping[str, TaskSize], steps: int, random: Random) -> Iterator[dict[str, int]]:
        """At least ``steps`` quotas, one for each update; ``random`` is the stage's own generator."""

    def updates(self, sizes: Mapping[str, TaskSize]) -> int:
        """Updates of a stage with these tasks."""
        return self.steps if self.steps is not None else (self.epochs or DEFAULT_EPOCHS) * self.epoch(sizes)

    def stage_tasks(self, tasks: Sequence[str]) -> list[tuple[str, ...]]:
        """The stages for these tasks.

        Raises:
            UsageError: where ``stages`` or ``order`` name a task that is not there, name one twice, or leave one out.
        """
        if not tasks:
            raise UsageError("there is no task to train", hint="name some: --tasks cls,det,seg")
        named = [name for stage in self.stages for name in stage] or self.order
        if named:
            _check_names(named, list(tasks), "stages" if self.stages else "order")
        if self.stages:
            return [tuple(stage) for stage in self.stages]
        return self.default_stages(tuple(named or tasks))

    def events(self, tasks: Mapping[str, TaskSize], seed: int) -> Iterator[Event]:
        """The whole training, the same for the same tasks and seed; the first n skipped, the rest resumes after them.

        A stage is ``Begin, (Batch.., Update, [Evaluate probe], [Evaluate val])*, End, Evaluate`` of all tasks seen so
        far on ``test``.

        Raises:
            UsageError: at once, where settings and tasks do not go together.
        """
        plan = self.stage_tasks(list(tasks))
        for name, size in tasks.items():
            _check(size.count >= 1, f'task "{name}" has no training samples', "look at its data: mtpeft data PATH")
            _check(
                size.batch_size >= self.accumulate,
                f'accumulate = {self.accumulate} cannot divide the batch size {size.batch_size} of task "{name}"',
                "lower schedule.accumulate or raise the task's batch_size",
            )
        return self._all_stages(plan, dict(tasks), seed)

    def _all_stages(self, plan: list[tuple[str, ...]], tasks: dict[str, TaskSize], seed: int) -> Iterator[Event]:
        seen: tuple[str, ...] = ()
        for stage, names in enumerate(plan):
            earlier, seen = seen, seen + names
            for event in self._one_stage(stage, {name: tasks[name] for name in names}, seed):
                yield event
                if isinstance(event, Update) and earlier and self._probes(event.step + 1):
                    yield Evaluate(stage, seen, final=False, probe=True)
            following = plan[stage + 1] if self.evaluate_before and stage + 1 < len(plan) else ()
            yield Evaluate(stage, seen, ahead=following)

    def _probes(self, done: int) -> bool:
        return bool(self.probe_every) and done % self.probe_every == 0

    def _one_stage(self, stage: int, sizes: dict[str, TaskSize], seed: int) -> Iterator[Event]:
        names, steps = tuple(sizes), self.updates(sizes)
        quotas = self.quotas(sizes, steps, generator("schedule", seed, stage))
        yield Begin(stage, names, steps)
        for step, quota in enumerate(islice(quotas, steps)):
            for part in divide(quota, self.accumulate):
                yield Batch(part, quota)
            yield Update(step)
            done = step + 1
            if done == steps or (self.eval_every and done % self.eval_every == 0):
                yield Evaluate(stage, names, split="val", final=False)
        yield End(stage, names)


def divide(quota: Mapping[str, int], parts: int) -> list[dict[str, int]]:
    """A quota in ``parts`` quotas that add up to it, as even as they go.

    >>> divide({"cls": 5, "det": 2}, 2)
    [{'cls': 3, 'det': 1}, {'cls': 2, 'det': 1}]
    """
    return [
        {name: number // parts + (part < number % parts) for name, number in quota.items()} for part in range(parts)
    ]


def full_quota(sizes: Mapping[str, TaskSize]) -> dict[str, int]:
    """A batch of every task."""
    return {name: size.batch_size for name, size in sizes.items()}


def longest(sizes: Mapping[str, TaskSize]) -> int:
    """Updates after which the largest task has been met once."""
    return max(size.batches for size in sizes.values())


def _check(condition: bool, message: str, hint: str) -> None:
    if not condition:
        raise UsageError(message, hint=hint)


def _check_names(named: Sequence[str], tasks: Sequence[str], setting: str) -> None:
    for place, name in enumerate(named):
        if name not in tasks:
            raise UsageError(
                f'{setting} names a task "{name}" that this run does not have', hint=did_you_mean(name, tasks)
            )
        _check(
            name not in named[:place], f'{setting} names the task "{name}" twice', "each task is trained in one stage"
        )
    missing = [name for name in tasks if name not in named]
    listed = ", ".join(f'"{name}"' for name in missing)
    _check(not missing, f"{setting} leaves out {listed}", f"add it to {setting}, or leave it out of the run's tasks")
