"""Several tasks that label the same images: an image is read and augmented once, with the targets of all its tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from mtpeft.data.loading import Loaded, Prepared
from mtpeft.errors import DataError
from mtpeft.task import Dataset, ImageConfig, Task


def together(tasks: Mapping[str, Task], names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Source -> its tasks: those of ``names`` that share their images (`Task.images`) together, others alone.

    A source of one task has its name, another one a name that no task can have.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(f"images:{tasks[name].images}" if tasks[name].images else name, []).append(name)
    return {own[0] if len(own) == 1 else source: tuple(own) for source, own in found.items()}


class SharedImages:
    """One split of several tasks: every image that one of them labels, with ``{task: its target}``.

    Every task's own transform is run from the same state of torch's generator, so that all draw one and the same crop,
    mirroring and colours, and each moves its own target with them.

    Args:
        tasks: those that share the images.
        datasets: the split of each.

    Attributes:
        samples: of each image, task -> index of its sample in the task's data.

    Raises:
        DataError: for an image that a task has twice, or tasks that have no image in common.
    """

    def __init__(self, tasks: Mapping[str, Task], datasets: Mapping[str, Dataset]) -> None:
        self.tasks, self.datasets = dict(tasks), dict(datasets)
        self.origins: dict[str, dict[str, int]] = {}
        for name, dataset in self.datasets.items():
            for index in range(len(dataset)):
                own = self.origins.setdefault(dataset.origin(index), {})
                if own.setdefault(name, index) != index:
                    message = f'task "{name}" has the image "{dataset.origin(index)}" twice'
                    raise DataError(message, hint="list each image once, or leave the tasks' images setting out")
        self.samples = list(self.origins.values())
        if all(len(own) == 1 for own in self.samples):
            message = f"the tasks {', '.join(self.tasks)} have no image in common"
            raise DataError(message, hint="take their data from the same image files, or leave images out")

    def __len__(self) -> int:
        return len(self.samples)

    def prepared(self, image: ImageConfig, *, train: bool) -> Callable[[int], Prepared]:
        """From the number of an image to the image, transformed, and ``{task: target}``.

        Raises:
            DataError: where two tasks' transforms, or data, give different images.
        """
        transforms = {name: task.transform(image, train=train) for name, task in self.tasks.items()}

        def prepare(index: int) -> Prepared:
            start, targets = torch.get_rng_state(), {}
            pixels = None
            for name, own in self.samples[index].items():
                torch.set_rng_state(start)
                sample = self.datasets[name][own]
                mine, targets[name] = transforms[name](sample)
                if pixels is not None and not torch.equal(pixels, mine):
                    message = f'the tasks {", ".join(self.tasks)} prepare "{sample.name}" as different images'
                    raise DataError(message, hint="give them the same augment, flip and fit, or leave images out")
                pixels = mine
            assert pixels is not None  # every image is some task's
            return pixels, targets

        return prepare

    def collate(self, samples: list[Prepared]) -> Loaded:
        images, targets = zip(*samples, strict=True)
        return torch.stack(images), list(targets)


def by_task(names: Sequence[str], targets: Sequence[dict[str, Any]]) -> dict[str, list[int]]:
    """Which images of a batch of `SharedImages` each task labels, where it labels any."""
    rows = {name: [row for row, target in enumerate(targets) if name in target] for name in names}
    return {name: own for name, own in rows.items() if own}


def check_apart(name: str, train: Mapping[str, Dataset], held_out: Mapping[str, Dataset]) -> None:
    """Refuse an image that one task trains on and another is measured on: what they share would have seen it.

    Args:
        name: of the split that is held out.

    Raises:
        DataError: naming the first such image.
    """
    trained = {task: {data.origin(index) for index in range(len(data))} for task, data in train.items()}
    for task, data in held_out.items():
        for origin in (data.origin(index) for index in range(len(data))):
            other = next((t for t, seen in trained.items() if t != task and origin in seen), None)
            if other is not None and origin not in trained[task]:
                message = f'image "{origin}" is in the training data of "{other}" and in the {name} data of "{task}"'
                raise DataError(message, hint="give both tasks the same splits, or leave images out")
