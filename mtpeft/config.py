"""What a run is made of: a recipe and flags as strict dataclasses, in which every value knows where it came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from itertools import count, islice, takewhile
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tomli_w
from pydantic import Field

from mtpeft.addresses import MethodAddress
from mtpeft.errors import UsageError
from mtpeft.names import brief, check_task_name
from mtpeft.recipe import Draft
from mtpeft.settings import (
    Bytes,
    Count,
    NonNegative,
    Origin,
    Positive,
    Share,
    Whole,
    as_toml,
    build,
    check_keys,
    shown,
)


@dataclass(frozen=True)
class MethodConfig:
    """One method with its settings; ``label`` is ``name``, or ``name-2`` where the same method stands twice."""

    name: str
    label: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskConfig:
    """A task's type and the settings of that type."""

    type: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ScheduleConfig:
    """A schedule and its settings (``steps``, ``epochs``, ``stages``, ``order``, ...)."""

    name: str = "joint"
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BalanceConfig:
    """A balancer and its settings."""

    name: str = "equal"
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OptimizerConfig:
    """A registered optimizer, with warm-up and cosine decay.

    Attributes:
        name: ``adamw``, ``sgd``, ``timm`` or what a plugin adds.
        settings: its own; checked when it is built.
        lr: peak learning rate; None for the method's own.
        head_lr: that of heads; None for ``lr``, and without one the method's own or 2e-3, whichever is larger.
        warmup: fraction of a stage's updates.
        clip_norm: largest norm of the gradient; 0 for no clipping.
        precision: ``bf16`` runs the forward pass under autocast.
        checkpointing: recompute activations in the backward pass.
    """

    name: str = "adamw"
    settings: dict[str, Any] = field(default_factory=dict)
    lr: Positive | None = None
    head_lr: Positive | None = None
    weight_decay: NonNegative = 1e-4
    warmup: Share = 0.1
    clip_norm: NonNegative = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpointing: bool = False


@dataclass(frozen=True)
class OutputConfig:
    """The run folder.

    Attributes:
        dir: relative to the current directory.
        save_every: updates between saved states; 0 saves at the end of a stage only.
        keep: which weights ``eval`` and ``predict`` are to use: the last, or the best on validation.
        patience: evaluations without improvement after which a stage stops; 0 never stops early.
    """

    dir: str = ""
    save_every: Whole = 200
    keep: Literal["last", "best"] = "last"
    patience: Whole = 0


TABLES = {"bench": "mtpeft.bench.plan:BenchConfig"}
"""Tables of rooms above this one, and each room's dataclass for its own, which is imported where a recipe has it."""
T = TypeVar("T")


@dataclass(frozen=True)
class Basics:
    """The values outside of any table.

    Attributes:
        class_order_seed, data_seed: ``seed`` where not given.
        weights: absolute path of local backbone weights, ``random`` for none, or None for the backbone's own.
        image_size: side, or height and width, in pixels; None for the backbone's own.
        backbone_options: further arguments of ``timm.create_model``.
        normalization: mean and std of images: the backbone's own, or as another protocol has them.
        train_on: the splits to train on; with ``val`` among them nothing is validated.
        evaluate_on: the split that fills the result matrix; with ``val``, for choosing, ``test`` is not even opened.
        workers: processes that load data; 0 loads in the training process.
        memory: what all methods together may keep of samples (replay), an image counting as its pixels; None: no limit.
        cache: absolute path of a folder to keep decoded samples in, uncompressed, for this run and later ones.
    """

    seed: Whole = 0
    class_order_seed: Whole | None = None
    data_seed: Whole | None = None
    backbone: str = "micro"
    weights: str | None = None
    image_size: Count | tuple[Count, Count] | None = None
    backbone_options: dict[str, Any] = field(default_factory=dict)
    normalization: Literal["backbone", "imagenet", "inception", "none"] = "backbone"
    train_on: tuple[Literal["train", "val"], ...] = ("train",)
    evaluate_on: Literal["val", "test"] = "test"
    workers: Whole = 0
    memory: Bytes | None = None
    cache: str | None = None
    device: Annotated[
        str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, mps, cuda or cuda:N")
    ] = "auto"


@dataclass(frozen=True)
class Config(Basics):
    """A whole run, resolved.

    Attributes:
        loggers: the settings of each logger, which are checked when it is built.
        tables: what other rooms keep in a recipe, each as the dataclass of its `TABLES` entry; see `table`.
        origins: where given values came from; see `origin`.
    """

    methods: tuple[MethodConfig, ...] = ()
    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    loggers: dict[str, dict[str, Any]] = field(default_factory=dict)
    tables: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    def origin(self, key: str) -> str:
        """Where a value came from: the recipe's file, a flag such as ``--steps`` or ``--set``, or ``default``."""
        for known, source in self.origins.items():
            if known == key or known.startswith(f"{key}."):
                return source
        return "default"

    def table(self, kind: type[T]) -> T:
        """Another room's table: ``config.table(BenchConfig)``; with its defaults where the recipe has none."""
        return next((table for table in self.tables.values() if isinstance(table, kind)), kind())

    def with_folder(self, *, resume: bool = False) -> Config:
        """With ``output.dir`` filled in: ``runs/NAME`` numbered so that it is free, or, to ``resume``, the newest."""
        if self.output.dir:
            return self
        base = Path("runs", self._name())
        taken = list(takewhile(Path.exists, _numbered(base)))
        folder = (taken or [base])[-1] if resume else next(islice(_numbered(base), len(taken), None))
        return replace(self, output=replace(self.output, dir=folder.as_posix()))

    def _name(self) -> str:
        recipe = next((Path(source).stem for source in self.origins.values() if not source.startswith("--")), "config")
        if recipe != "config":
            return recipe
        schedule = [] if self.schedule.name == "joint" else [self.schedule.name]
        return "-".join([*self.tasks, *(method.label for method in self.methods), *schedule])

    def to_toml(self) -> str:
        """A recipe that gives this configuration again."""
        tree: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(Basics)}
        for name in ("class_order_seed", "data_seed"):
            tree[name] = None if tree[name] == self.seed else tree[name]
        tree["methods"] = [{"name": method.name, **method.settings} for method in self.methods]
        tree["tasks"] = {name: {"type": task.type, **task.settings} for name, task in self.tasks.items()}
        tree["schedule"] = {"name": self.schedule.name, **self.schedule.settings}
        tree["balance"] = {"name": self.balance.name, **self.balance.settings}
        tree |= {"optimizer": vars(self.optimizer), "output": vars(self.output)}
        tree |= {"loggers": self.loggers} if self.loggers else {}
        return tomli_w.dumps(_without_none(tree))


def _without_none(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _without_none(v) if isinstance(v, Mapping) else v for k, v in tree.items() if v is not None}


def _numbered(base: Path) -> Iterator[Path]:
    yield base
    yield from (base.with_name(f"{base.name}-{number}") for number in count(2))


@dataclass
class Overrides:
    """What the command line gives: flags by their names, and ``KEY=VALUE`` settings."""

    flags: Mapping[str, Any] = field(default_factory=dict)
    settings: Sequence[str] = ()


def load(recipe: Path | str | None = None, overrides: Overrides | None = None) -> Config:
    """A recipe with flags over it, checked; the settings of plugins are checked when they are built.

    Relative paths of data and weights are taken from the recipe's folder; those of flags from the current directory.

    Raises:
        UsageError: naming the dotted key and where its value came from.
    """
    config = _resolve(recipe, overrides or Overrides())
    if not config.tasks:
        raise UsageError("there is no task to train", hint="name some, e.g. --tasks cls,det,seg, or give a recipe")
    if not config.methods:
        raise UsageError(
            "there is no method to train with", hint="name one, e.g. --method hydra-lora; `mtpeft methods` lists them"
        )
    return config


def load_methods(method: str, settings: Sequence[str] = ()) -> Config:
    """A configuration of methods alone, for what needs no tasks: ``rank=16`` here means ``methods.METHOD.rank=16``."""
    first = MethodAddress.parse(method).names[0]
    full = [item if "." in item.partition("=")[0] else f"methods.{first}.{item}" for item in settings]
    return _resolve(None, Overrides({"--method": method}, full))


def _resolve(recipe: Path | str | None, overrides: Overrides) -> Config:
    draft = Draft()
    if recipe is not None:
        draft.read(Path(recipe))
    for flag, value in overrides.flags.items():
        draft.flag(flag, value)
    for item in overrides.settings:
        draft.set(item)
    return resolve(draft)


def resolve(draft: Draft) -> Config:
    """What was read, checked; the settings of plugins are checked when they are built.

    Raises:
        UsageError: naming the dotted key and where its value came from.
    """
    tree, origin = draft.tree, Config(origins=draft.origins).origin
    basic = [f.name for f in fields(Basics)]
    own = [f.name for f in fields(Config) if f.name not in (*basic, "tables", "origins")]
    check_keys(tree, [*basic, *own, *TABLES], "", origin)
    for name in (*own, *(name for name in TABLES if name in tree)):
        _check_table(tree.setdefault(name, {}), name, origin)
    basics = _splits(build(Basics, {name: value for name, value in tree.items() if name in basic}, "", origin))
    return Config(
        **vars(_seeded(basics)),
        methods=tuple(_method(label, table) for label, table in tree["methods"].items()),
        tasks=_tasks(tree["tasks"], origin),
        schedule=ScheduleConfig(*_named(tree["schedule"], "schedule", "joint", origin)),
        balance=BalanceConfig(*_named(tree["balance"], "balance", "equal", origin)),
        optimizer=build(OptimizerConfig, tree["optimizer"], "optimizer", origin),
        output=build(OutputConfig, tree["output"], "output", origin),
        loggers=_loggers(tree["loggers"], origin),
        tables={name: build(_owner(name), tree[name], name, origin) for name in TABLES if name in tree},
        origins=draft.origins,
    )


def _owner(table: str) -> Any:
    """The dataclass of another room's table."""
    module, _, name = TABLES[table].partition(":")
    return getattr(import_module(module), name)


def _loggers(tables: Mapping[str, Any], origin: Origin) -> dict[str, dict[str, Any]]:
    for name, table in tables.items():
        _check_table(table, f"loggers.{name}", origin)
    return {name: dict(table) for name, table in tables.items()}


def _splits(basics: Basics) -> Basics:
    if "train" not in basics.train_on:
        hint = 'say ["train"] or ["train", "val"]'
        raise UsageError(f"train_on = {as_toml(basics.train_on)} has no train", hint=hint)
    if basics.evaluate_on in basics.train_on:
        raise UsageError("train_on and evaluate_on both name val", hint="what is trained on measures nothing")
    return basics


def _seeded(basics: Basics) -> Basics:
    order, data = (basics.seed if seed is None else seed for seed in (basics.class_order_seed, basics.data_seed))
    return replace(basics, class_order_seed=order, data_seed=data)


def _method(label: str, table: Mapping[str, Any]) -> MethodConfig:
    settings = dict(table)
    return MethodConfig(settings.pop("name"), label, settings)


def _tasks(tables: Mapping[str, Any], origin: Origin) -> dict[str, TaskConfig]:
    found: dict[str, TaskConfig] = {}
    for name, table in tables.items():
        check_task_name(name, found)
        found[name] = _task(name, table, origin)
    return found


def _task(name: str, table: Any, origin: Origin) -> TaskConfig:
    key = f"tasks.{name}"
    _check_table(table, key, origin)
    return TaskConfig(*_named(table, key, name, origin, entry="type"))


def _named(
    table: Mapping[str, Any], key: str, default: str, origin: Origin, entry: str = "name"
) -> tuple[str, dict[str, Any]]:
    settings = dict(table)
    name = settings.pop(entry, default)
    if not isinstance(name, str) or not name:
        where = f"{key}.{entry}"
        raise UsageError(
            f"{where} = {shown(name)} (from {origin(where)}) is not a name", hint=f'e.g. {entry} = "{default}"'
        )
    return name, settings


def _check_table(table: Any, key: str, origin: Origin) -> None:
    if not isinstance(table, Mapping):
        raise UsageError(
            f"{brief(key)} = {shown(table)} (from {origin(key)}) is not a table",
            hint=f"write [{brief(key)}] and settings below it",
        )
