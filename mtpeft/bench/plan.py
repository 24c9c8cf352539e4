"""What a recipe's ``[bench]`` table says: which methods are compared, by which rates and seeds. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from mtpeft.addresses import MethodAddress
from mtpeft.config import Config, resolve
from mtpeft.errors import UsageError, did_you_mean
from mtpeft.plugins import registry
from mtpeft.recipe import Draft
from mtpeft.settings import Positive, Whole

EVERY_METHOD = "*"
"""In ``bench.methods``: all that are installed."""
PER_TRIAL = {
    "seed": "bench.seeds has the seeds",
    "output.dir": "--out names the folder of the records",
    "evaluate_on": "val is for the choice of a learning rate, test for what was chosen",
}
"""What no setting can say of all trainings, and what says it."""


@dataclass(frozen=True)
class BenchConfig:
    """What ``mtpeft bench`` compares. ``mtpeft train`` takes no notice of it.

    Attributes:
        methods: each as ``--method`` takes it, with the settings that ``[[methods]]`` or ``--set methods.NAME.SETTING``
            give to what it names; of two ``[[methods]]`` of one name the second is ``NAME-2``. Empty for all of
            ``[[methods]]``, each by itself; ``*`` for all that are installed.
        learning_rates: tried for each method and task, and chosen on validation; empty for the method's own.
        rate_factors: for methods (by name) that learn at other rates by a factor, their heads not included: these start
            from nothing whatever the method.
        seeds: the first one chooses; the mean is over all.
        top: how many methods, the best on validation, get all seeds; 0 for every one.
        together: train all tasks in one run, not each in its own.
        refit: train once more on ``train`` and ``val`` with what was chosen.
        groups: tasks by group, for the mean of the groups' means.
        relative_to: methods whose time and memory the others are divided by.
        scale: parameters at which the PPT score has lost a quarter.
    """

    methods: tuple[str, ...] = ()
    learning_rates: tuple[Positive, ...] = ()
    rate_factors: dict[str, Positive] = field(default_factory=dict)
    seeds: Annotated[tuple[Whole, ...], Field(min_length=1)] = (0,)
    top: Whole = 0
    together: bool = False
    refit: bool = False
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    relative_to: tuple[str, ...] = ()
    scale: Positive = 1e7


def load_plan(recipe: Path | str, settings: Sequence[str] = ()) -> Config:
    """A recipe whose methods may stand in its ``[bench]`` table alone, with ``KEY=VALUE`` settings over it.

    Raises:
        UsageError: naming the dotted key and where its value came from.
    """
    config = resolve(_draft(recipe, settings))
    if not config.tasks:
        raise UsageError(f"there is no task in {recipe}", hint="write [tasks.NAME] and its type and data below it")
    return config


def load_trial(recipe: Path | str, settings: Sequence[str], flags: Mapping[str, Any]) -> Config:
    """One training of a plan: what the settings say of all trainings, and over it the flags, ``--method`` among them.

    Raises:
        UsageError: naming the dotted key and where its value came from.
    """
    draft = _draft(recipe, settings)
    for flag, value in flags.items():
        draft.flag(flag, value)
    return resolve(draft)


def _draft(recipe: Path | str, settings: Sequence[str]) -> Draft:
    draft = Draft()
    draft.read(Path(recipe))
    for item in sorted(settings, key=lambda item: item.startswith("methods.")):  # which there are, the others say
        draft.set(item, methods=_compared(draft.tree.get("bench")))
    return draft


def _compared(bench: Any) -> tuple[str, ...]:
    """What ``bench.methods`` names; whether it is a list of texts is checked with everything else."""
    named = bench.get("methods") if isinstance(bench, dict) else None
    texts = [text for text in named if isinstance(text, str)] if isinstance(named, list) else []
    if EVERY_METHOD in texts:
        return tuple(registry("methods"))
    return tuple(name for text in texts for name in MethodAddress.parse(text, "bench.methods").names)


def methods_of(config: Config) -> tuple[str, ...]:
    """The methods that a plan compares.

    Raises:
        UsageError: where it names none, or one twice.
    """
    bench = config.table(BenchConfig)
    named = bench.methods or tuple(method.label for method in config.methods)
    every = dict.fromkeys((*bench.relative_to, *registry("methods")))
    methods = tuple(every) if named == (EVERY_METHOD,) else named
    if not methods:
        hint = 'e.g. methods = ["lora", "adaptformer"], or ["*"] for all'
        raise UsageError("bench.methods names no method", hint=hint)
    if len(set(methods)) < len(methods):
        raise UsageError("bench.methods names a method twice", hint="name each once")
    return methods


def check(config: Config, methods: Sequence[str]) -> None:
    """
    Raises:
        UsageError: for groups of unknown tasks, an unknown method to compare costs with, ``top`` without a choice, or
            ``--set`` of what differs between trainings.
    """
    bench = config.table(BenchConfig)
    rate = {"optimizer.lr": "bench.learning_rates has the rates"} if bench.learning_rates else {}
    for key, instead in (PER_TRIAL | rate).items():
        if config.origins.get(key) == "--set":
            raise UsageError(f"--set {key} is not for mtpeft bench, where trainings differ in it", hint=instead)
    for group, tasks in bench.groups.items():
        for task in tasks:
            if task not in config.tasks:
                hint = did_you_mean(task, config.tasks)
                raise UsageError(f'bench.groups.{group} names a task "{task}" that there is not', hint=hint)
    for name in bench.relative_to:
        if name not in methods:
            hint = did_you_mean(name, methods)
            raise UsageError(f'bench.relative_to names "{name}", which is not compared', hint=hint)
    if bench.top and not bench.learning_rates:
        raise UsageError("bench.top needs validation scores", hint="give bench.learning_rates to choose from")
