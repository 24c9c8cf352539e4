"""A task of many classes as several tasks of some, in an order that a seed decides: class-incremental learning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from random import Random

from mtpeft.config import Config, TaskConfig
from mtpeft.errors import UsageError, did_you_mean
from mtpeft.plugins import create
from mtpeft.task import Task

LEGACY_SEED = 1993
"""Of the class order in most published class-incremental tables."""
_OF_THE_WHOLE = ("split", "class_order", "protocol")
"""Settings that a part does not have."""


def split_classes(config: Config) -> Config:
    """The configuration with every task that has ``split`` in parts ``NAME-1``, ``NAME-2``, ...

    The parts are of one group, so one head grows with them. Their classes are ordered by the task's ``class_order`` and
    by ``class_order_seed`` alone; those that the task type has `everywhere` belong to every part.

    Raises:
        UsageError: for a split that does not divide the classes there are, or an order that does not name each of them.
    """
    tasks: dict[str, TaskConfig] = {}
    for name, task in config.tasks.items():
        tasks |= _parts(config, name, task) if task.settings.get("split") else {name: task}
    return replace(config, tasks=tasks)


def _parts(config: Config, name: str, task: TaskConfig) -> dict[str, TaskConfig]:
    made: Task = create("tasks", task.type, task.settings, f"tasks.{name}", config.origin)
    known = made.dataset("train", seed=config.data_seed or 0).classes
    divided = _ordered(config, name, made, [label for label in known if label not in made.everywhere])
    common = [label for label in known if label in made.everywhere]
    ends = [0, *accumulate(_sizes(name, made.split, len(divided)))]
    rest = {key: value for key, value in task.settings.items() if key not in _OF_THE_WHOLE}
    found = {}
    for number, (start, end) in enumerate(pairwise(ends), 1):
        own = made.part_settings([*common, *divided[start:end]], divided[:start], divided[end:])
        found[f"{name}-{number}"] = TaskConfig(task.type, {"group": name, **rest, **own})
    return found


def _ordered(config: Config, name: str, task: Task, classes: list[str]) -> list[str]:
    if task.class_order == "natural":
        return classes
    if task.class_order == "numpy":
        given = config.origin("class_order_seed") != "default"
        seed = config.class_order_seed if given else LEGACY_SEED
        return [classes[index] for index in legacy_permutation(len(classes), seed or 0)]
    if task.class_order == "shuffled":
        Random(config.class_order_seed).shuffle(classes)
        return classes
    return _as_named(f"tasks.{name}.class_order", task.class_order, classes)


def legacy_permutation(count: int, seed: int) -> list[int]:
    """``numpy.random.seed(seed); numpy.random.permutation(count)``, which published class orders come from.

    >>> legacy_permutation(100, 1993)[:6]
    [68, 56, 78, 8, 23, 84]
    """
    from numpy.random import RandomState

    return [int(index) for index in RandomState(seed).permutation(count)]


def _as_named(where: str, order: Sequence[str], classes: Sequence[str]) -> list[str]:
    known, named = set(classes), set(order)
    for label in order:
        if label not in known:
            raise UsageError(f'{where} names "{label}", which is no class', hint=did_you_mean(label, classes))
    if len(named) < len(order):
        twice = next(label for index, label in enumerate(order) if label in order[:index])
        raise UsageError(f'{where} names "{twice}" twice', hint="name each class once")
    if missing := [label for label in classes if label not in named]:
        hint = "name every class; classes = [...] leaves some out"
        raise UsageError(f'{where} does not name "{missing[0]}"', hint=hint)
    return list(order)


def _sizes(name: str, split: int | tuple[int, ...], count: int) -> list[int]:
    """The number of classes of each part; of a number of parts, the first ``count % split`` have one more."""
    sizes = [count // split + (part < count % split) for part in range(split)] if isinstance(split, int) else split
    if min(sizes) < 1 or sum(sizes) != count:
        hint = "give a number of parts, or the sizes of the parts, e.g. split = [50, 10, 10]"
        raise UsageError(f"tasks.{name}.split = {split} does not divide {count} classes", hint=hint)
    return list(sizes)
