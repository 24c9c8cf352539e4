"""``manifest.json``: what a run was made with, and whether that is still what its names stand for."""

from __future__ import annotations

import json
import platform
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from mtpeft.data.label_checks import recorded
from mtpeft.errors import DataError
from mtpeft.files import STRICT, check_seal, parse, read_json, sealed, unsealed, within, write_json
from mtpeft.plugins import manager
from mtpeft.toml_text import read_toml
from mtpeft.training.run import Run

FILE = "manifest.json"
_PACKAGES = ("mtpeft", "torch", "torchvision", "timm", "safetensors")
_FREE = {"weights", "workers", "cache", "device", "output", "optimizer", "loggers"}
_NOT_READ = {"left_out"}
"""What a data set's record says of files that it does not read."""


@dataclass
class Plugin:
    """A plugin that was loaded."""

    __pydantic_config__ = STRICT

    name: str
    package: str | None
    version: str | None


@dataclass
class Origin:
    """The run that another was started from, and the tasks and number of stages taken over; empty for none."""

    __pydantic_config__ = STRICT

    run: str = ""
    tasks: tuple[str, ...] = ()
    stages: int = 0


@dataclass
class Manifest:
    """What a run was made with.

    Attributes:
        config: `settings_hash` of its configuration.
        data: task -> split -> what the data records of itself.
        learning_rates: `Run.learning_rates`.
    """

    __pydantic_config__ = STRICT

    config: str
    versions: dict[str, str]
    plugins: list[Plugin]
    backbone: dict[str, str]
    data: dict[str, dict[str, dict[str, Any]]]
    seeds: dict[str, int]
    learning_rates: dict[str, Any]
    threads: int
    origin: Origin = field(default_factory=Origin)

    @staticmethod
    def of(run: Run, origin: Origin) -> Manifest:
        """That of a run which is about to begin."""
        config = run.config
        return Manifest(
            config=settings_hash(tomllib.loads(config.to_toml())),
            versions={"python": platform.python_version(), **{name: metadata.version(name) for name in _PACKAGES}},
            plugins=[
                Plugin(plugin.name, plugin.distribution, plugin.version)
                for plugin in manager().plugins.values()
                if plugin.state == "loaded"
            ],
            backbone={"name": run.backbone.name, "sha256": run.backbone.sha256},
            data=json.loads(json.dumps(run.data.manifest())),
            seeds={"seed": config.seed, "data": run.data.seed, "class_order": config.class_order_seed or 0},
            learning_rates=run.learning_rates(),
            threads=torch.get_num_threads(),
            origin=origin,
        )

    def write(self, folder: Path) -> None:
        plain = asdict(self)
        origin = plain.pop("origin")
        write_json(folder / FILE, sealed({**plain, "from": origin if self.origin.run else {}}))

    @staticmethod
    def read(folder: Path) -> Manifest:
        """
        Raises:
            MtpeftError: if there is none, or it is not what was written, naming file and field.
        """
        path = within(folder, FILE)
        data = read_json(path)
        plain = unsealed(data)
        if isinstance(plain, dict) and "from" in plain:  # a keyword of Python
            plain["origin"] = plain.pop("from")
        manifest = parse(Manifest, plain, f'"{path}"')
        check_seal(data, path)
        manifest._check_config(within(folder, "config.toml"))
        return manifest

    def _check_config(self, path: Path) -> None:
        """
        Raises:
            DataError: if the configuration says another thing than when the run was started.
        """
        if settings_hash(read_toml(path)) != self.config:
            hint = "take it from a copy; where data and weights are, and how they are loaded, may be changed in it"
            raise DataError(f'"{path}" is not what the run was started with', hint=hint)

    def versions_changed(self, now: Manifest) -> list[str]:
        """What else than data is not what it was, in sentences: another version may give other bits."""
        there = {plugin.name: plugin.version for plugin in now.plugins}
        before = self.versions | {p.name: p.version or "" for p in self.plugins}
        after = now.versions | {name: there[name] or "" for name in there}
        return [
            f"the run was started with {name} {version or '(no version)'}, and here is {after.get(name, 'none')}"
            for name, version in before.items()
            if after.get(name) != version
        ]


def settings_hash(tree: Mapping[str, Any]) -> str:
    """The sha256 of a ``config.toml``, without where things are and what a resumed run may change."""
    tasks = tree.get("tasks", {})
    kept = {name: {k: v for k, v in task.items() if k != "data"} for name, task in tasks.items()}
    plain = {name: value for name, value in tree.items() if name not in _FREE} | {"tasks": kept, "order": list(tasks)}
    return sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()


def data_changes(kept: Manifest, run: Run, splits: tuple[str, ...] = ()) -> dict[str, str]:
    """Task -> a sentence, for each task of both whose data is not what it was.

    Args:
        splits: those to look at; all that both have where none is given.
    """
    found = {}
    for name, before in kept.data.items():
        shared = (split for split in before if name in run.tasks and split in (splits or run.data.splits))
        for split in shared:
            now = json.loads(json.dumps(recorded(run.dataset(name, split))))
            difference = first_difference(before[split], now)
            if difference and name not in found:
                found[name] = f'the {split} split of task "{name}" has changed since: {difference}'
    return found


def refuse_other_data(kept: Manifest, run: Run) -> None:
    """
    Raises:
        DataError: naming task, split and the first difference.
    """
    for sentence in data_changes(kept, run).values():
        raise DataError(sentence, hint="put the data back as it was, or start anew with another --out")


def first_difference(before: Any, now: Any, name: str = "") -> str:
    """The first value of two records that is another, in words; hashes come last, for they say the least."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted({*before, *now} - _NOT_READ, key=lambda key: (key == "sha256", str(key)))
        inner = (first_difference(before.get(key), now.get(key), f"{name}.{key}".lstrip(".")) for key in keys)
        return next(filter(None, inner), "")
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        return first_difference(dict(enumerate(before)), dict(enumerate(now)), name)
    if before == now:
        return ""
    if name.endswith("sha256"):
        return "the content of a file or a label is another"
    return f"{name} was {_short(before)} and is {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
