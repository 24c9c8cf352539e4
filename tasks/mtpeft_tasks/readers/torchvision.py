"""``torchvision:NAME@DATA``: classification from a data set that torchvision reads, e.g. ``torchvision:CIFAR100@data``.

DATA is the folder that torchvision calls ``root``. Nothing is downloaded unless ``?download=true`` asks for it. A
missing validation split is held out of the training images (10 %); of sets without splits, 20 % are held out for test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image
from torchvision import datasets

from mtpeft.api import DataError, UsageError, did_you_mean
from mtpeft_tasks.readers import files, walk
from mtpeft_tasks.readers.labels import Entry, Found, LabelReader, Source


@dataclass(frozen=True)
class Known:
    """How a class of torchvision is asked for a split, and where it keeps its labels and the names of its classes.

    Attributes:
        splits: the arguments of each split that there is.
        labels: the attribute of labels, or of pairs that end with one; reading items would decode every image.
        names: the attribute of names; empty for classes without.
    """

    splits: Mapping[str, Mapping[str, Any]]
    labels: str
    names: str = "classes"


def _by_split(train: str = "train", val: str = "", test: str = "test") -> dict[str, dict[str, str]]:
    return {name: {"split": value} for name, value in (("train", train), ("val", val), ("test", test)) if value}


_BY_TRAIN = {"train": {"train": True}, "test": {"train": False}}
_WHOLE: dict[str, dict[str, Any]] = {"train": {}}
# SUN397 is not here: torchvision lists it in the order of the file system, so an index would not name an image.
KNOWN = {
    "CIFAR10": Known(_BY_TRAIN, "targets"),
    "CIFAR100": Known(_BY_TRAIN, "targets"),
    "Caltech101": Known(_WHOLE, "y", "categories"),
    "Caltech256": Known(_WHOLE, "y", "categories"),
    "Country211": Known(_by_split(val="valid"), "targets"),
    "DTD": Known(_by_split(val="val"), "_labels"),
    "EuroSAT": Known(_WHOLE, "targets"),
    "FGVCAircraft": Known(_by_split(val="val"), "_labels"),
    "FashionMNIST": Known(_BY_TRAIN, "targets"),
    "Flowers102": Known(_by_split(val="val"), "_labels", ""),
    "Food101": Known(_by_split(), "_labels"),
    "GTSRB": Known(_by_split(), "_samples", ""),
    "Imagenette": Known(_by_split(test="val"), "_samples"),
    "KMNIST": Known(_BY_TRAIN, "targets"),
    "MNIST": Known(_BY_TRAIN, "targets"),
    "OxfordIIITPet": Known(_by_split(train="trainval"), "_labels"),
    "RenderedSST2": Known(_by_split(val="val"), "_samples"),
    "SEMEION": Known(_WHOLE, "labels", ""),
    "STL10": Known(_by_split(), "labels"),
    "SVHN": Known(_by_split(), "labels", ""),
    "StanfordCars": Known(_by_split(), "_samples"),
    "USPS": Known(_BY_TRAIN, "targets", ""),
}


@dataclass(frozen=True)
class Items(Source):
    """The items of torchvision's data sets; ``train/12`` is the one at 12 of the split ``train``."""

    sets: Mapping[str, Any] = field(repr=False)

    def image(self, path: str) -> Image.Image:
        split, _, index = path.partition("/")
        return files.loaded(path, lambda: self.sets[split][int(index)][0])


@dataclass
class TorchvisionData(LabelReader):
    """Classification from a data set that torchvision reads: NAME@DATA.

    Attributes:
        download: fetch what is not there.
    """

    gives: ClassVar[tuple[str, ...]] = ("label",)

    download: bool = False

    def find(self, path: str) -> Found:
        name, at, place = path.partition("@")
        if name not in KNOWN:
            raise UsageError(f'torchvision\'s "{name}" is not among those read here', hint=did_you_mean(name, KNOWN))
        if not at or not place:
            raise UsageError(f'"torchvision:{path}" names no folder', hint=f"for example torchvision:{name}@data")
        root = Path(place).expanduser() if self.download else files.folder(place)
        walk.only_regular(root)
        known = KNOWN[name]
        where = f'{name} in "{root}"'
        sets = {split: self._opened(name, root, split) for split in known.splits}
        splits = {split: self._entries(where, split, data, known) for split, data in sets.items()}
        return Found(Items(sets), splits, _names(sets["train"], known), "train")

    def _opened(self, name: str, root: Path, split: str) -> Any:
        known = KNOWN[name]
        try:
            data = getattr(datasets, name)(str(root), download=self.download, **known.splits[split])
            _names(data, known)
        except Exception as error:  # each format has its own ways to be broken or absent
            message = f'torchvision cannot read {name} in "{root}", {split}: {files.reason(error)}'
            raise DataError(message, hint="add ?download=true to the data's path, or put its files there") from error
        return data

    def _entries(self, where: str, split: str, data: Any, known: Known) -> list[Entry]:
        """Named by the split's own classes: some sets number those that a split has."""
        classes, values = _names(data, known), getattr(data, known.labels)
        if len(values) != len(data):
            message = f"{where}, {split} has {len(data)} images and {len(values)} labels"
            raise DataError(message, hint="its files do not belong together: fetch them again")
        found = [(f"{split}/{index}", value) for index, value in enumerate(values)]
        tried = [(path, self.attempt(_label, value, classes, f"{where}, {path}")) for path, value in found]
        return [Entry(path, (label,), f"{where}, {path}") for path, label in tried if label is not None]


def _names(data: Any, known: Known) -> tuple[str, ...] | None:
    """The names of the classes by position; None where the set knows none.

    Raises:
        ValueError: where it should, and does not.
    """
    if not known.names:
        return None
    names = tuple(name if isinstance(name, str) else ", ".join(name) for name in getattr(data, known.names))
    if not names:
        raise ValueError("its classes have no names")
    return names


def _label(value: Any, classes: tuple[str, ...] | None, where: str) -> str:
    """The name of a class, or its number where it has none; of a pair, the last stands for it."""
    value = value[-1] if isinstance(value, tuple) else value
    try:
        value = number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if number < 0 or (classes and number >= len(classes)):
        raise DataError(f'{where}: label "{value!s:.40}" is no class', hint="fetch the files again, or correct them")
    return classes[number] if classes else str(number)
