"""What stands in a run folder beside the trained tensors: configuration, manifest, results."""

from __future__ import annotations

import platform
import resource
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from mtpeft.config import Config
from mtpeft.config import load as load_config
from mtpeft.errors import UsageError
from mtpeft.evaluation import ResultMatrix
from mtpeft.files import read_json, within
from mtpeft.plugins import manager
from mtpeft.training.run import Run

_PACKAGES = ("mtpeft", "torch", "torchvision", "timm", "safetensors")
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
    before = load_config(folder / "config.toml")
    for name in (name for name in vars(config) if name not in _MAY_CHANGE):
        if getattr(config, name) != getattr(before, name):
            hint = f"resume without changes (mtpeft train --resume --out {folder}), or start anew with another --out"
            raise UsageError(f'{name} is not what the run "{folder}" was started with', hint=hint)


def manifest(run: Run, origin: dict[str, Any]) -> dict[str, Any]:
    """What a run was made with: versions, plugins, backbone, data, seeds and learning rates.

    Args:
        origin: the run it was started from, and the tasks taken over; empty for none.
    """
    plugins = [
        {"name": plugin.name, "package": plugin.distribution, "version": plugin.version}
        for plugin in manager().plugins.values()
        if plugin.state == "loaded"
    ]
    config = run.config
    return {
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in _PACKAGES}},
        "plugins": plugins,
        "backbone": {"name": run.backbone.name, "sha256": run.backbone.sha256},
        "data": run.data.manifest(),
        "seeds": {"seed": config.seed, "data": run.data.seed, "class_order": config.class_order_seed},
        "learning_rates": run.learning_rates(),
        "threads": torch.get_num_threads(),
        "from": origin,
    }


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
    return ResultMatrix.from_json(read_json(path), str(path))
