"""What readers share whose images have several kinds of labels, each in a folder of its own.

One folder of such data serves several tasks: each asks for the target of its type. The list that papers evaluate on is
the test split; a validation split of 10 % is held out of the training images, so that nothing is chosen on it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mtpeft.api import DataError, Dataset, Reader, Sample, Split
from mtpeft_tasks.maps import IGNORED, MAPS
from mtpeft_tasks.readers import files, walk

_LOOKED_AT = 16  # samples of a split that are decoded before training: all would take minutes for thousands of images


@dataclass(frozen=True)
class Member:
    """One image with the files that hold its labels of one kind."""

    name: str
    image: Path
    labels: tuple[Path, ...]


class Maps(Dataset):
    """Images with one map each."""

    def __init__(self, reader: ImageSetReader, items: list[Member], gives: str, classes: tuple[str, ...]) -> None:
        self.reader, self.items, self.gives, self.classes = reader, items, gives, classes
        self.table = np.full(256, IGNORED, np.uint8)
        for value, name in enumerate(reader.names(gives)):
            if gives == "mask" and name in classes:
                self.table[value] = classes.index(name)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        item = self.items[index]
        image, values = files.read_image(item.image), self.values(index)
        if values.shape[-2:] != (image.height, image.width):
            message = f'"{item.labels[0]}" is {values.shape[-1]} x {values.shape[-2]}, its image'
            raise DataError(f"{message} {image.width} x {image.height}", hint="labels have the size of their image")
        return Sample(image, {self.gives: values, "classes": self.classes}, item.image.name)

    def values(self, index: int) -> Tensor:
        """The map of a sample, classes numbered as they are asked for."""
        item = self.items[index]
        values = self.reader.load(item, self.gives)
        if self.gives != "mask":
            return torch.from_numpy(values)
        known = len(self.reader.names(self.gives))
        if (wrong := values[(values >= known) & (values != IGNORED)]).size:
            message = f'"{item.labels[0]}" has the value {wrong[0]}, but there are {known} classes'
            raise DataError(message, hint="255 is for pixels without a class")
        return torch.from_numpy(self.table[values])

    def origin(self, index: int) -> str:
        return files.origin(self.items[index].image)

    def shown(self, index: int) -> frozenset[str] | None:
        """From the mask itself: there is no other place that says it."""
        if self.gives != "mask":
            return None
        return frozenset(self.classes[row] for row in self.values(index).unique().tolist() if row != IGNORED)

    def manifest(self) -> dict[str, Any]:
        """The hash is over the names and the content of the files."""
        stated = [f"{item.name}\t{files.stated(item.image, *item.labels)}" for item in self.items]
        return {"count": len(self), "sha256": files.digest(stated), "classes": list(self.classes)}


@dataclass
class ImageSetReader(Reader, ABC):
    """Images in one folder, labels of the same name in others, and lists of names for the splits."""

    images: ClassVar[str]
    lists: ClassVar[dict[str, str]]
    """The files that list the names of the images: of ``train``, and of ``test``."""

    @abstractmethod
    def names(self, gives: str) -> tuple[str, ...]:
        """What the values of a mask stand for, or the planes of another map."""

    @abstractmethod
    def files(self, root: Path, name: str, gives: str) -> tuple[Path, ...]:
        """The files with an image's labels."""

    @abstractmethod
    def load(self, item: Member, gives: str) -> np.ndarray:
        """A map ``(H, W)`` or ``(K, H, W)`` from its files; masks with 255 for what has no class.

        Raises:
            DataError: naming the file.
        """

    def members(self, root: Path, split: Split, gives: str, names: list[str]) -> list[str]:
        """Those of a split's images that are of use; all, unless a layout says which have no labels at all."""
        return names

    def read(self, path: str, split: Split, *, gives: str, seed: int) -> Dataset:
        """Every file is looked for; the labels of some images of the split are decoded.

        Raises:
            DataError: naming the file, for a missing list, image or label, or a split in which no pixel is labelled.
        """
        root = files.folder(path)
        classes = files.asked_classes(self.names(gives), self.classes)
        named = {name: list(dict.fromkeys(_names(root / file))) for name, file in self.lists.items()}
        names = files.fill_splits(named, dict.fromkeys(named["train"], ""), seed)[split]
        place = files.folder(root / self.images)
        for error in walk.folders_left_out(place):
            self.notice(error)
        pictures = {file.stem: file for file in walk.images_in(place)}
        wanted = self.members(root, split, gives, names)
        items = [self.attempt(self._item, root, name, pictures, gives) for name in wanted]
        data = Maps(self, [item for item in items if item is not None], gives, classes)
        if len(data) and not any(self._labelled(data, index) for index in _some(len(data))):
            message = f'"{root}" has no labelled pixel for {gives} in the split "{split}"'
            raise DataError(message, hint="check the files of the labels")
        return data

    def recognises(self, path: Path) -> bool:
        """The folder of images beside the lists."""
        return (path / self.images).is_dir() and all((path / file).is_file() for file in self.lists.values())

    def _item(self, root: Path, name: str, pictures: dict[str, Path], gives: str) -> Member:
        if name not in pictures:
            raise DataError(f'"{root / self.images}" has no image "{name}"', hint="the lists of the splits name it")
        labels = self.files(root, name, gives)
        if not pictures[name].is_file():
            raise DataError(f'image "{pictures[name]}" is no file', hint="replace it")
        for file in labels:
            if not file.is_file():
                raise DataError(f'image "{name}" has no labels: "{file}" does not exist', hint="add it, or unlist it")
        return Member(name, pictures[name], labels)

    def _labelled(self, data: Maps, index: int) -> bool:
        values = self.attempt(data.values, index)
        return values is not None and bool(MAPS[data.gives].labelled(values.reshape(-1, *values.shape[-2:])).any())


def load_array(path: Path, shape: str) -> np.ndarray:
    """What is in a ``.npy`` file, as floats.

    Raises:
        DataError: naming the file, where it cannot be read or is not of the ``shape``: ``HW`` or ``HW3``.
    """
    try:
        with files.opened(path):
            values = np.array(np.lib.format.open_memmap(path, mode="r"))  # its size is checked against the file's
    except DataError:
        raise
    except Exception as error:  # what a damaged header makes its parser raise is not documented
        raise DataError(f'"{path}" cannot be read: {files.reason(error)}', hint="expected a NumPy array") from None
    if shape == "HW" and values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim != len(shape) or values.dtype.kind not in "biuf" or (shape == "HW3" and values.shape[-1] != 3):
        raise DataError(f'"{path}" has the shape {values.shape} of {values.dtype}', hint=f"expected numbers {shape}")
    return values.astype(np.float32)


def _names(file: Path) -> list[str]:
    if not file.is_file():
        raise DataError(f'list "{file}" does not exist', hint="it has the name of one image in each line")
    return files.read_lines(file)


def _some(count: int) -> range:
    """At most `_LOOKED_AT` indices over the whole split."""
    return range(0, count, max(-(-count // _LOOKED_AT), 1))
