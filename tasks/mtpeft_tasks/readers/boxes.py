"""What readers of boxes share: objects with their checks, and the samples made of them."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from mtpeft.api import DataError, Dataset, Sample
from mtpeft_tasks.readers import files
from mtpeft_tasks.readers.shapes import Box, Shape
from mtpeft_tasks.readers.splits import SplitReader

ROUNDING = 0.5
"""Pixels that a box may leave its image by: files round, and what is beyond is cut off."""


@dataclass(frozen=True, slots=True)
class Object:
    """One annotated object.

    Attributes:
        number: its place in the file, for messages.
        label: its class.
        box: xyxy in pixels.
        difficult: neither to be found nor held against who finds it (COCO's crowds, VOC's difficult objects).
        shape: its pixels, where the file says them.
    """

    number: int
    label: str
    box: Box
    difficult: bool = False
    shape: Shape | None = None


@dataclass(frozen=True)
class Annotated:
    """One image with its objects.

    Attributes:
        image: its file; of one that lies in no file, what else it is known by.
        size: (height, width).
        file: what annotates it.
        state: what tells an image that lies in no file from others of its name.
    """

    image: Path
    name: str
    size: tuple[int, int]
    file: Path
    objects: tuple[Object, ...] = ()
    state: str = ""


class Boxed(Dataset):
    """Images with boxes."""

    def __init__(self, items: list[Annotated], classes: tuple[str, ...]) -> None:
        self.items, self.classes = items, classes
        self.index = {name: index for index, name in enumerate(classes)}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        item = self.items[index]
        target = {
            "boxes": torch.tensor([found.box for found in item.objects], dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor([self.index[found.label] for found in item.objects], dtype=torch.int64),
            "difficult": torch.tensor([found.difficult for found in item.objects], dtype=torch.bool),
            "classes": self.classes,
        }
        return Sample(self.picture(item), target, item.name)

    def picture(self, item: Annotated) -> Image.Image:
        return files.read_image(item.image)

    def origin(self, index: int) -> str:
        return files.origin(self.items[index].image)

    def shown(self, index: int) -> frozenset[str]:
        return frozenset(found.label for found in self.items[index].objects)

    def manifest(self) -> dict[str, Any]:
        """The histogram counts objects."""
        return {
            "count": len(self),
            "sha256": files.digest(stated(self.items)),
            "classes": list(self.classes),
            "histogram": histogram(self.items, self.classes),
        }


def stated(items: Iterable[Annotated]) -> Iterator[str]:
    """Images and objects in words, for a hash over them all."""
    for item in items:
        yield f"{item.name}\t{item.state or files.stated(item.image)}"
        for found in item.objects:
            shape = "" if found.shape is None else hashlib.sha256(found.shape.state()).hexdigest()
            yield f"{found.label}\t{found.box}\t{found.difficult}\t{shape}"


def histogram(items: Iterable[Annotated], classes: Iterable[str]) -> dict[str, int]:
    """How many objects of each class there are."""
    shown = Counter(found.label for item in items for found in item.objects)
    return {name: shown[name] for name in classes}


@dataclass
class BoxOptions(ABC):
    """What readers do with boxes that make no sense.

    Attributes:
        degenerate: ``error``, or ``skip`` boxes without area.
        outside: ``error``, or ``clip`` boxes that leave their image.
    """

    degenerate: Literal["error", "skip"] = "error"
    outside: Literal["error", "clip"] = "error"

    @abstractmethod
    def place(self, file: Path, number: int) -> str:
        """Where the object of this number stands, for messages."""

    def checked(self, item: Annotated, found: Object) -> Object | None:
        """The object with its box inside the image; None where it is to be skipped.

        Raises:
            DataError: for a box outside its image or without area, unless the options say otherwise.
        """
        height, width = item.size
        left, top, right, bottom = found.box
        where = f"{self.place(item.file, found.number)} ({found.label}): box {list(found.box)}"
        inside = min(left, top, width - right, height - bottom) >= -ROUNDING  # false where one is not a number
        if not inside and self.outside == "error":
            message = f"{where} is outside its image of {width} x {height}"
            raise DataError(message, hint="correct it, or add ?outside=clip to the data's path")
        left, right = (min(max(side, 0.0), float(width)) for side in (left, right))
        top, bottom = (min(max(side, 0.0), float(height)) for side in (top, bottom))
        if right > left and bottom > top:
            return replace(found, box=(left, top, right, bottom))
        if self.degenerate == "error":
            raise DataError(f"{where} has no area", hint="correct it, or add ?degenerate=skip to the data's path")
        return None


@dataclass
class BoxReader(BoxOptions, SplitReader, ABC):
    """A reader of boxes from files."""


def require_objects(items: Iterable[Annotated], classes: Iterable[str], root: Path | str, split: str) -> None:
    """Training on nothing is an error.

    Raises:
        DataError: where no image has an object of these classes.
    """
    if not any(histogram(items, classes).values()):
        hint = "check the annotations, the lists of the splits and the classes"
        raise DataError(f'"{root}" has no objects in the split "{split}"', hint=hint)
