"""A task of many classes as several tasks of some, in an order that a seed decides: class-incremental learning."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from random import Random

from mtpeft.config import Config, TaskConfig
from mtpeft.errors import UsageError
from mtpeft.plugins import create


def split_classes(config: Config) -> Config:
    """The configuration with every task that has ``split`` in parts ``NAME-1``, ``NAME-2``, ...

    The parts are of one group, so one head grows with them. Classes are shuffled by ``class_order_seed`` alone.

    Raises:
        UsageError: for a split that does not divide the classes there are.
    """
    tasks: dict[str, TaskConfig] = {}
    for name, task in config.tasks.items():
        tasks |= _parts(config, name, task) if task.settings.get("split") else {name: task}
    return replace(config, tasks=tasks)


def _parts(config: Config, name: str, task: TaskConfig) -> dict[str, TaskConfig]:
    made = create("tasks", task.type, task.settings, f"tasks.{name}", config.origin)
    classes = list(made.dataset("train", seed=config.data_seed or 0).classes)
    Random(config.class_order_seed).shuffle(classes)
    ends = _ends(name, made.split, len(classes))
    rest = {key: value for key, value in task.settings.items() if key != "split"}
    parts = [classes[start:end] for start, end in pairwise([0, *ends])]
    return {
        f"{name}-{number}": TaskConfig(task.type, {"group": name, **rest, "classes": part})
        for number, part in enumerate(parts, 1)
    }


def _ends(name: str, split: int | tuple[int, ...], count: int) -> list[int]:
    """Where each part ends among the shuffled classes."""
    sizes = [count // split] * split if isinstance(split, int) else list(split)
    if min(sizes) < 1 or sum(sizes) != count:
        hint = "give a number that divides them, or the sizes of the parts, e.g. split = [50, 10, 10]"
        raise UsageError(f"tasks.{name}.split = {split} does not divide {count} classes", hint=hint)
    return [sum(sizes[: index + 1]) for index in range(len(sizes))]
