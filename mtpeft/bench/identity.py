"""What tells one comparison from another: its plan and data are kept beside its records, and in each record a hash."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

from mtpeft.addresses import DataAddress, relative
from mtpeft.config import Config, TaskConfig
from mtpeft.errors import MtpeftError
from mtpeft.files import read_json, write_file, write_json
from mtpeft.task import SPLITS, Split
from mtpeft.toml_text import parse_toml
from mtpeft.training.setup import build_tasks


def remember(config: Config, folder: Path, recipe: Path) -> None:
    """Keep the resolved plan beside the records, or hold it against what is kept.

    A setting that the kept plan does not know is taken at its default: so a later version reads an older plan.

    Raises:
        MtpeftError: where the records in ``folder`` are those of another plan, naming what differs.
    """
    path = folder / "plan.toml"
    text = portable(config, recipe.resolve().parent)
    if path.exists():
        differing = _differing(_with_defaults(_kept(path)), _with_defaults(tomllib.loads(text)))
        if differing:
            message = f'"{folder}" holds the records of another plan: {differing} is not what it was'
            raise MtpeftError(message, hint="give another --out, or that plan")
    folder.mkdir(parents=True, exist_ok=True)
    write_file(path, text.encode())


def _kept(path: Path) -> dict[str, Any]:
    try:
        return parse_toml(path.read_text("utf-8"))
    except ValueError as error:
        raise MtpeftError(
            f'"{path}" cannot be read: {error}', hint="take it from a copy, or give another --out"
        ) from None


def _with_defaults(plan: Mapping[str, Any]) -> dict[str, Any]:
    filled = dict(plan)
    for name, default in _defaults().items():
        table = isinstance(default, dict) and isinstance(plan.get(name), dict)
        filled[name] = {**default, **plan[name]} if table else plan.get(name, default)
    return filled


@cache
def _defaults() -> dict[str, Any]:
    return tomllib.loads(Config().to_toml())


def _differing(kept: Any, now: Any) -> str:
    """Dotted name of the first setting that is another; the order of tasks is that of training, and counts."""
    if not isinstance(kept, dict) or not isinstance(now, dict):
        return ""
    name = next((name for name in {**kept, **now} if kept.get(name) != now.get(name)), "")
    if not name and list(kept.get("tasks", ())) != list(now.get("tasks", ())):
        return "the order of tasks"
    return f"{name}.{_differing(kept.get(name), now.get(name))}".rstrip(".")


def portable(config: Config, base: Path) -> str:
    """A configuration with its paths relative to ``base``: the same wherever recipe and data were put together.

    How samples are loaded is left out: it changes nothing.
    """
    weights = config.weights
    if weights is not None and Path(weights).is_absolute():
        weights = relative(weights, base)
    tasks = {name: _moved(task, base) for name, task in config.tasks.items()}
    return replace(config, weights=weights, tasks=tasks, workers=0, cache=None).to_toml()


def _moved(task: TaskConfig, base: Path) -> TaskConfig:
    data = task.settings.get("data")
    if not isinstance(data, str) or not data:
        return task
    return replace(task, settings={**task.settings, "data": str(DataAddress.parse(data).relative_to(base))})


def identity_of(config: Config, base: Path) -> str:
    """sha256 of a whole configuration, `portable`, without where its run is kept.

    Settings at their defaults are left out, so that one that a later version adds changes the identity of nothing.
    """
    config = replace(config, output=replace(config.output, dir=""))
    said, defaults = tomllib.loads(portable(config, base)), _defaults()
    said = {name: _unlike(value, defaults.get(name)) for name, value in said.items() if value != defaults.get(name)}
    return sha256(json.dumps([said, list(config.tasks)], sort_keys=True, default=str).encode()).hexdigest()


def _unlike(value: Any, default: Any) -> Any:
    if not isinstance(value, dict) or not isinstance(default, dict):
        return value
    return {name: item for name, item in value.items() if name not in default or item != default[name]}


def remember_data(config: Config, folder: Path) -> None:
    """Keep what says which data it is beside the records, or hold it against what is kept: one table, one data.

    Raises:
        MtpeftError: where the records in ``folder`` are of other data, naming task and split.
    """
    path, found = folder / "data.json", manifests(config)
    for task, splits in (read_json(path) if path.exists() else {}).items():
        for split, kept in splits.items():
            if found[task][split] != kept:
                message = f'"{folder}" holds records of other data: the {split} split of "{task}" has changed'
                raise MtpeftError(message, hint="give another --out, or that data")
    write_json(path, found)


def manifests(config: Config) -> dict[str, dict[str, Any]]:
    """What each task's data records of its splits, in plain values.

    Raises:
        DataError: for data that cannot be used.
    """
    tasks, seed = build_tasks(config), config.data_seed or 0
    whole = {n: {s: task.dataset(cast(Split, s), seed=seed).manifest() for s in SPLITS} for n, task in tasks.items()}
    return json.loads(json.dumps(whole))
