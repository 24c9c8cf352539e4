"""What stands in a run folder beside the trained tensors: configuration, costs, results."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

from mtpeft.backbone import is_elsewhere
from mtpeft.config import Config
from mtpeft.config import load as load_config
from mtpeft.errors import MtpeftError, UsageError
from mtpeft.evaluation import ResultMatrix
from mtpeft.files import check_seal, read_json, within
from mtpeft.recipe import RANDOM_WEIGHTS
from mtpeft.training.checkpoint import current_state, read_position

_BEFORE_TRAINING = {"config.toml", "manifest.json", "state", "events.jsonl"}
_MAY_CHANGE = ("optimizer", "output", "loggers", "tables", "workers", "cache", "device", "origins")


def refuse_existing(path: Path, hint: str = "") -> None:
    """
    Raises:
        UsageError: if there is a file at ``path``, or something in the folder that is there.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        hint = hint or f"continue it: mtpeft train --resume --out {path}; or give another --out"
        raise UsageError(f'"{path}" exists already, and nothing is overwritten', hint=hint)


def refuse_changes(config: Config, folder: Path) -> None:
    """Resuming may change the optimizer and the machine, not what is trained.

    Raises:
        UsageError: naming the first setting that is another than in the run.
    """
    name = first_change(config, folder)
    if name:
        hint = f"resume without changes (mtpeft train --resume --out {folder}), or start anew with another --out"
        raise UsageError(f'{name} is not what the run "{folder}" was started with', hint=hint)


def first_change(config: Config, folder: Path) -> str:
    """The first setting that is another than in the run, and decides what is trained; empty for none."""
    before = load_config(within(folder, "config.toml"))
    decisive = (name for name in vars(config) if name not in _MAY_CHANGE)
    changed = (name for name in decisive if getattr(config, name) != getattr(before, name))
    other = config.optimizer.name != before.optimizer.name or config.optimizer.settings != before.optimizer.settings
    return next(changed, "optimizer" if other else "")  # its moments would mean nothing to another one


def is_untrained(folder: Path) -> bool:
    """Whether a folder is what a run leaves that has trained nothing, so that another may take its place."""
    names = {place.name for place in folder.iterdir()} if folder.is_dir() else set()
    if "config.toml" not in names or not names <= _BEFORE_TRAINING:
        return False
    states = [place for place in (folder / "state").glob("*") if place.is_dir()]
    with suppress(MtpeftError):
        return not states or read_position(current_state(within(folder, "state"))).at.events == 0
    return False


def peak_memory(device: torch.device) -> int:
    """Bytes: of the accelerator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def read_results(folder: Path) -> ResultMatrix:
    """The results of a run folder, or of a ``results.json``.

    Raises:
        MtpeftError: if there are none, or they are damaged.
    """
    path = within(folder, "results.json") if folder.is_dir() else folder
    return ResultMatrix.from_json(check_seal(read_json(path), path, needed=False), str(path))


def named_outside(config: Config) -> dict[str, str]:
    """What evaluating or resuming a run reads outside its folder because its ``config.toml`` says so, by setting.

    A folder may be a stranger's: say this before reading it.
    """
    data = {f"tasks.{name}.data": str(task.settings.get("data") or "") for name, task in config.tasks.items()}
    named = {**data, "weights": config.weights or "", "cache": config.cache or ""}
    if config.weights is None and is_elsewhere(config.backbone):
        named["backbone"] = config.backbone
    return {setting: value for setting, value in named.items() if value and value != RANDOM_WEIGHTS}
