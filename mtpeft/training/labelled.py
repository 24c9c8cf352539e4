"""A batch of training: images, and which of them each task labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtpeft.data.loading import ImageSource, Loaded
from mtpeft.data.loading import Key as Drawn
from mtpeft.data.shared_images import SharedImages
from mtpeft.peft.memory import Key
from mtpeft.peft.routine import Targets


@dataclass(frozen=True)
class Label:
    """One task's target of the image in row ``row``; ``index`` is the sample's in the task's data."""

    task: str
    row: int
    index: int
    target: dict[str, Any]


@dataclass(frozen=True)
class LabelledImages:
    """Images of several tasks, of which some may label the same.

    Attributes:
        images: ``(B, 3, H, W)``.
        rows: task -> which of the images it labels.
        targets, keys: task -> one for each of these.
    """

    images: Tensor
    rows: dict[str, list[int]]
    targets: dict[str, Targets]
    keys: dict[str, tuple[Key, ...]]

    @staticmethod
    def of(loaded: Mapping[str, Loaded], keys: Sequence[Drawn], sources: Mapping[str, ImageSource]) -> LabelledImages:
        """One batch of a loader, with the keys it was loaded by."""
        own: dict[str, list[Label]] = {}
        for label in _labels(loaded, keys, sources):
            own.setdefault(label.task, []).append(label)
        return LabelledImages(
            torch.cat([images for images, _ in loaded.values()]),
            {task: [label.row for label in labels] for task, labels in own.items()},
            {task: [label.target for label in labels] for task, labels in own.items()},
            {task: tuple((task, label.index) for label in labels) for task, labels in own.items()},
        )

    def images_of(self, task: str) -> Tensor:
        return self.images[self.rows[task]]


def _labels(loaded: Mapping[str, Loaded], keys: Sequence[Drawn], sources: Mapping[str, ImageSource]) -> Iterator[Label]:
    start = 0
    for name, (images, targets) in loaded.items():
        source, drawn = sources[name], (index for of, index, _ in keys if of == name)
        for row, (index, target) in enumerate(zip(drawn, targets, strict=True), start):
            if isinstance(source, SharedImages):
                yield from (Label(task, row, own, target[task]) for task, own in source.samples[index].items())
            else:
                yield Label(name, row, index, target)
        start += len(images)
