"""Semantic masks drawn from the shapes of objects."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from mtpeft.api import DataError, Dataset, Sample
from mtpeft_tasks.maps import BACKGROUND, IGNORED
from mtpeft_tasks.readers import files
from mtpeft_tasks.readers.boxes import Annotated, BoxReader, Object, histogram, stated
from mtpeft_tasks.readers.shapes import Box, Runs

OVERSHOOT = 0.01
"""Of the image's side, that a shape may leave it by: outlines are drawn by hand."""


class Drawn(Dataset):
    """Images with a class for each pixel, drawn when asked for: smaller objects over larger ones.

    Pixels of objects whose class is not among ``classes`` are ignored, and so are those of no object where ``classes``
    do not begin with the background.
    """

    def __init__(self, items: list[Annotated], classes: tuple[str, ...]) -> None:
        self.items, self.classes = items, classes
        self.value = {name: value for value, name in enumerate(classes)}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        item = self.items[index]
        target = {"mask": torch.from_numpy(self._mask(item)), "classes": self.classes}
        return Sample(files.read_image(item.image), target, item.name)

    def _mask(self, item: Annotated) -> np.ndarray:
        pixels = [
            (found.shape.mask(item.size), self.value.get(found.label, IGNORED))
            for found in item.objects
            if found.shape is not None
        ]
        columns = np.full(item.size[::-1], self.value.get(BACKGROUND, IGNORED), np.uint8)  # as shapes lie in memory
        for covered, value in sorted(pixels, key=lambda pair: -np.count_nonzero(pair[0])):
            columns[covered.T] = value
        return np.ascontiguousarray(columns.T)

    def origin(self, index: int) -> str:
        return files.origin(self.items[index].image)

    def shown(self, index: int) -> frozenset[str]:
        behind = (BACKGROUND,) if BACKGROUND in self.value else ()
        return frozenset((*(found.label for found in self.items[index].objects if found.label in self.value), *behind))

    def manifest(self) -> dict[str, Any]:
        """The histogram counts objects, and images for the background."""
        counts = histogram(self.items, self.classes)
        return {
            "count": len(self),
            "sha256": files.digest(stated(self.items)),
            "classes": list(self.classes),
            "histogram": counts | {BACKGROUND: len(self)} if BACKGROUND in counts else counts,
        }


@dataclass
class ShapeReader(BoxReader, ABC):
    """A reader of boxes and of masks drawn from shapes.

    Attributes:
        background: whether pixels of no object are a ``class`` of that name, or ``ignore``; in masks only.
    """

    gives: ClassVar[tuple[str, ...]] = ("boxes", "mask")

    background: Literal["class", "ignore"] = "class"

    def kept(self, every: Sequence[str], used: Sequence[str], gives: str) -> tuple[str, ...]:
        """The classes: those that are asked for, of every one there is; else those that some object has.

        Raises:
            UsageError: for a class that the data does not have.
            DataError: for more classes than a mask has values.
        """
        behind = (BACKGROUND,) if gives == "mask" and self.background == "class" else ()
        wanted = [name for name in self.classes if name not in behind]
        kept = files.asked_classes(every if wanted else used, wanted)
        classes = behind + tuple(name for name in kept if name not in behind)
        if gives == "mask" and len(classes) > IGNORED:
            hint = "choose some with ?classes=NAME,NAME"
            raise DataError(f"the data has {len(classes)} classes, and masks hold {IGNORED}", hint=hint)
        return classes

    def filled(self, item: Annotated, objects: Sequence[Object], kept: tuple[str, ...], gives: str) -> Annotated:
        """The image with its objects, each checked; for boxes those of the kept classes only."""
        if gives == "mask":
            tried = [self.attempt(self._shaped, item, found) for found in objects]
        else:
            asked = frozenset(kept)
            tried = [self.attempt(self.checked, item, found) for found in objects if found.label in asked]
        return replace(item, objects=tuple(found for found in tried if found is not None))

    def _shaped(self, item: Annotated, found: Object) -> Object | None:
        """The object with the box of its shape."""
        where = f"{self.place(item.file, found.number)} ({found.label})"
        if found.shape is None:
            raise DataError(f"{where} has no segmentation", hint="masks need polygons or run lengths")
        if isinstance(found.shape, Runs) and found.shape.size != item.size:
            sizes = f"{list(found.shape.size)}, its image's {list(item.size)}"
            raise DataError(f"{where}: the segmentation's size is {sizes}", hint="both are [height, width]")
        return self.checked(item, replace(found, box=_trimmed(found.shape.extent(), item.size)))


def _trimmed(box: Box, size: tuple[int, int]) -> Box:
    """The box without what overshoots the image a little."""
    height, width = size
    left, top, right, bottom = box
    slack_x, slack_y = OVERSHOOT * width, OVERSHOOT * height
    return (
        0.0 if -slack_x <= left < 0 else left,
        0.0 if -slack_y <= top < 0 else top,
        float(width) if width < right <= width + slack_x else right,
        float(height) if height < bottom <= height + slack_y else bottom,
    )
