"""Building a run from its configuration, or from the folder of one; what is wrong is found before anything trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from mtpeft import backbone as backbones
from mtpeft.backbone.extract import input_channels
from mtpeft.config import Config
from mtpeft.config import load as load_config
from mtpeft.data.label_checks import Allowed, histograms, label_errors, label_warnings, left_out
from mtpeft.data.opened import OpenedData
from mtpeft.errors import MtpeftError, UsageError, did_you_mean
from mtpeft.evaluation import ResultMatrix, TaskRecord
from mtpeft.files import standing_folder, within
from mtpeft.peft.allocation import Bound, limited_allocation
from mtpeft.peft.configured import build_methods
from mtpeft.peft.contents import as_data
from mtpeft.peft.host import Host
from mtpeft.peft.method import must_be_told
from mtpeft.peft.store import AdapterContents, read_adapter
from mtpeft.plugins import create
from mtpeft.recipe import RANDOM_WEIGHTS
from mtpeft.settings import byte_count
from mtpeft.task import Task
from mtpeft.training.checkpoint import current_state
from mtpeft.training.declared import check_declarations
from mtpeft.training.manifest import Manifest
from mtpeft.training.run import Run
from mtpeft.training.sharing import check_shared_images


def choose_device(name: str) -> torch.device:
    """
    Raises:
        UsageError: for a device that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    there = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if int(number or 0) >= there.get(kind, 1):
        raise UsageError(f'device = "{name}", but this machine has no such device', hint="leave it out, or say cpu")
    return torch.device(name)


def build_tasks(config: Config) -> dict[str, Task]:
    """The tasks of a configuration by name."""
    return {
        name: create("tasks", task.type, task.settings, f"tasks.{name}", config.origin)
        for name, task in config.tasks.items()
    }


def setup(
    config: Config,
    *,
    inherited: tuple[str, ...] = (),
    first_stage: int = 0,
    check_data: bool = True,
    saved: AdapterContents | None = None,
) -> Run:
    """Build everything that ``config`` names; what is wrong with it is found here, before anything is trained.

    Args:
        inherited: tasks that another run trained and this one does not.
        first_stage: number of stages that other runs made before.
        check_data: open every split of every task, and look at what its labels are.
        saved: what was trained, which bounds what the settings may ask for.
    """
    tasks, methods = build_tasks(config), build_methods(config)
    schedule = create("schedules", config.schedule.name, config.schedule.settings, "schedule", config.origin)
    balancer = create("balancers", config.balance.name, config.balance.settings, "balance", config.origin)
    optimizer = create(
        "optimizers", config.optimizer.name, config.optimizer.settings, "optimizer.settings", config.origin
    )
    device = choose_device(config.device)
    torch.manual_seed(config.seed)
    backbone = backbones.create_backbone(
        config.backbone,
        weights=None if config.weights == RANDOM_WEIGHTS else config.weights,
        pretrained=config.weights != RANDOM_WEIGHTS,
        image_size=config.image_size,
        options=config.backbone_options,
        normalization=config.normalization,
    )
    check_channels(backbone)
    parameters = sum(parameter.numel() for parameter in backbone.module.parameters())
    with _bounded(saved, backbone.module, config.output.dir):
        host = Host(backbone.module, methods, image_size=backbone.image.size).to(device)
    host.checkpointing(config.optimizer.checkpointing)
    check_groups(tasks, host)
    limit_memory(host, None if config.memory is None else byte_count(config.memory))
    types = {name: task.type for name, task in config.tasks.items()}
    check_declarations(config, host.methods, inherited)
    seed = config.seed if config.data_seed is None else config.data_seed
    data = OpenedData(tasks, types, config.train_on, config.evaluate_on, seed, config.cache)
    folder = Path(config.output.dir)
    chosen = (schedule, balancer, optimizer)
    run = Run(config, folder, device, backbone, parameters, host, tasks, data, *chosen, inherited, first_stage)
    run.matrix = ResultMatrix(task_records(run), schedule.stage_tasks(list(run.trained)))
    if check_data:
        check_labels(run)
        check_shared_images(run)
    return run


def limit_memory(host: Host, budget: int | None) -> None:
    """Let all routines keep samples within one budget of bytes, and none more than its own; an image counts its pixels.

    Without a budget, each has its own alone.
    """
    if budget is None:
        return
    memories = [routine.memory for routine in host.routines.values()]
    for memory in memories:
        memory.budget = budget if memory.budget is None else min(budget, memory.budget)
        memory.beside = tuple(other for other in memories if other is not memory)


@contextmanager
def _bounded(saved: AdapterContents | None, backbone: nn.Module, folder: str | Path) -> Iterator[None]:
    """Settings of a run that may be a stranger's build no more than its files can hold."""
    if saved is None:
        yield
    else:
        where = f'"{folder}"'
        with limited_allocation(Bound.of(saved, backbone), where), as_data(where):
            yield


def check_labels(run: Run) -> None:
    """Open every split that the run may see; readers check what they read, and the counts of classes are checked here.

    Raises:
        DataError: for data that a reader refuses, a split without labels, or a class that is never shown in training.
    """
    for name, task in run.tasks.items():
        what, allowed = f'task "{name}"', Allowed.by(task)
        splits = {split: run.dataset(name, split) for split in run.data.splits}
        if not task.data:
            shown = {"train": dict.fromkeys(splits["train"].classes, 1)}
            run.caveats += label_warnings(what, shown, allowed)
            continue  # the embedded data is as it should be
        shown = histograms({split: data.manifest() for split, data in splits.items()})
        for error in label_errors(what, shown, allowed):
            raise error
        run.caveats += label_warnings(what, shown, allowed)
        run.remarks += left_out(what, splits.values())


def check_channels(backbone: backbones.Backbone) -> None:
    """
    Raises:
        UsageError: for a backbone of other images than those of red, green and blue that readers give.
    """
    channels = input_channels(backbone.module)
    if channels != len(backbone.image.mean):
        raise UsageError(
            f"{backbone.name} takes images of {channels} channels here, and data sets give red, green and blue",
            hint="leave in_chans out; from Python, mtpeft.adapt takes any number of channels",
        )


def check_groups(tasks: Mapping[str, Task], host: Host) -> None:
    """Testing tells the tasks of a group apart by their head alone.

    Raises:
        UsageError: for a group with a method whose parts need to know the task.
    """
    grouped = [name for name, task in tasks.items() if task.group]
    for label, method in host.methods.items():
        if grouped and must_be_told(method, grouped):
            message = f'task "{grouped[0]}" is in a group, and {label} must know the task of each test image'
            raise UsageError(message, hint=f"take scope = shared for {label}, or leave group out")


def task_records(run: Run) -> dict[str, TaskRecord]:
    """What the result matrix must know of each task."""
    return {
        name: TaskRecord(run.config.tasks[name].type, task.metric_name, task.higher_is_better, None, task.unit)
        for name, task in run.tasks.items()
    }


def open_run(
    folder: Path, *, best: str = "", device: str = "auto", evaluate_on: Literal["val", "test"] | None = None
) -> Run:
    """A run again, as it was left: to evaluate, predict or export. Its data need not be there to predict.

    Args:
        folder: a run folder.
        best: a task whose best weights on validation are wanted instead of the last.
        device: where to run it, which need not be where it was trained.
        evaluate_on: ``test`` opens the test split of a run that was trained for a choice; None leaves it as it was.

    Raises:
        MtpeftError: if there is no such run or its files are damaged.
    """
    adapter = find_adapter(folder, best)
    config = load_config(within(folder, "config.toml"))
    Manifest.read(folder)
    output = replace(config.output, dir=str(folder))
    config = replace(config, output=output, device=device, evaluate_on=evaluate_on or config.evaluate_on)
    saved = read_adapter(adapter)
    run = setup(config, check_data=False, saved=saved)
    with _bounded(saved, run.host.backbone, folder):
        run.restore(adapter)
    run.host.eval()
    return run


def find_adapter(folder: Path, best: str = "") -> Path:
    """The folder with a run's trained tensors: finished, or the newest saved state of one that is not.

    Raises:
        MtpeftError: if it is no run, or nothing was saved in it.
    """
    find_config(folder)
    if best:
        weights = standing_folder(folder / "best" / best)
        if weights is None:
            known = [place.name for place in (folder / "best").glob("[!._]*")]
            raise MtpeftError(f'"{folder}" has no best weights for "{best}"', hint=did_you_mean(best, known))
        return within(folder, weights.relative_to(folder).as_posix())
    adapter = standing_folder(folder / "adapter")
    if adapter is not None:
        return within(folder, adapter.name)
    return current_state(within(folder, "state")) / "adapter"


def find_config(folder: Path) -> Path:
    """The configuration of a run.

    Raises:
        MtpeftError: if it is no run.
    """
    path = within(folder, "config.toml")
    if not path.exists():
        raise MtpeftError(f'"{folder}" is no run', hint="give the folder that mtpeft train wrote")
    return path
