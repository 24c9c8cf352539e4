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
from mtpeft.evaluation import Costs, Parameters, ResultMatrix
from mtpeft.files import read_json, within
from mtpeft.plugins import manager
from mtpeft.recipe import RANDOM_WEIGHTS
from mtpeft.training.position import Position
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


def costs(run: Run, at: Position) -> Costs:
    """What the training has cost so far."""
    count = run.host.count()
    methods = run.host.methods.values()
    statistics = [tensor for routine in run.host.routines.values() for tensor in routine.kept().values()]
    return Costs(
        Parameters(
            count.shared,
            dict(count.per_task),
            dict(count.heads),
            run.backbone_parameters,
        ),
        statistics_bytes=count.buffers + sum(tensor.numel() * tensor.element_size() for tensor in statistics),
        seconds=at.seconds,
        cpu_seconds=at.cpu_seconds,
        peak_memory_bytes=peak_memory(run.device),
        images_per_second=at.images / at.seconds if at.seconds else None,
        inference_passes=max((method.declares.inference_passes for method in methods), default=1),
        isolated=tuple(name for name in run.host.tasks if is_isolated(run, name)),
    )


def is_isolated(run: Run, name: str) -> bool:
    """Whether of all that acts for a task, head included, nothing that is trained belongs to another owner."""
    parts = run.host.parts.active_parts(name, run.host.tasks)
    others = (placed for placed in parts if placed.owner != name)
    return not run.tasks[name].group and not any(True for placed in others for _ in placed.part.parameters())


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


def named_outside(config: Config) -> dict[str, str]:
    """What evaluating or resuming a run reads outside its folder because its ``config.toml`` says so, by setting.

    A folder may be a stranger's: say this before reading it.
    """
    data = {f"tasks.{name}.data": str(task.settings.get("data") or "") for name, task in config.tasks.items()}
    named = {**data, "weights": config.weights or "", "cache": config.cache or ""}
    if config.weights is None and ":" in config.backbone:  # a folder, or a model of the hub
        named["backbone"] = config.backbone
    return {setting: value for setting, value in named.items() if value and value != RANDOM_WEIGHTS}
