"""Holding tasks that share their images to what that takes, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence

from mtpeft.data.loading import Samples
from mtpeft.data.shared_images import check_apart, together
from mtpeft.errors import UsageError
from mtpeft.training.run import Run


def check_shared_images(run: Run) -> None:
    """Look at every set of tasks that say the same `Task.images`.

    Raises:
        UsageError: for other batch sizes in a stage, or a balancer that wants each task's gradient.
        DataError: where images are not prepared alike, not shared at all, or trained on by one task and held out by
            another.
    """
    for stage in run.schedule.stage_tasks(list(run.trained)):
        for names in _sharing(run, stage):
            _check_settings(run, names)
    for names in _sharing(run, list(run.tasks)):
        _check_images(run, names)


def _sharing(run: Run, tasks: Sequence[str]) -> list[tuple[str, ...]]:
    return [names for names in together(run.tasks, tasks).values() if len(names) > 1]


def _check_settings(run: Run, names: tuple[str, ...]) -> None:
    listed = ", ".join(names)
    sizes = {name: run.tasks[name].batch_size for name in names}
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        hint = "give them one, for an update takes so many images for all of them"
        raise UsageError(f"the tasks {listed} share their images, and their batch sizes differ ({said})", hint=hint)
    if run.balancer.needs_task_gradients:
        message = f"the balancer {run.config.balance.name} wants the gradient of each task from samples of its own"
        hint = "choose a balancer of losses, or leave the tasks' images setting out"
        raise UsageError(f"{message}, and the tasks {listed} share their images", hint=hint)


def _check_images(run: Run, names: tuple[str, ...]) -> None:
    train = {name: run.dataset(name, "train") for name in names}
    for split in run.data.splits:
        shared = run.data.shared(names, split)
        if split != "train":
            check_apart(split, train, shared.datasets)
        first = max(range(len(shared)), key=lambda index: len(shared.samples[index]))
        Samples({"images": shared}, run.backbone.image, run.data.seed, train=split == "train").one("images", first, 0)
