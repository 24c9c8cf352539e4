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
from mtpeft_tasks.readers import files
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
        known = KNOWN[name]
        sets = {split: self._opened(name, root, arguments) for split, arguments in known.splits.items()}
        splits = {split: _entries(f'{name} in "{root}"', split, data, known) for split, data in sets.items()}
        return Found(Items(sets), splits, _names(sets["train"], known), "train")

    def _opened(self, name: str, root: Path, arguments: Mapping[str, Any]) -> Any:
        try:
            return getattr(datasets, name)(str(root), download=self.download, **arguments)
        except Exception as error:  # each format has its own ways to be broken or absent
            reason = " ".join(str(error).split()).split(". ")[0]
            message = f'torchvision cannot read {name} in "{root}": {reason}'
            raise DataError(message, hint="add ?download=true to the data's path, or put its files there") from error


def _names(data: Any, known: Known) -> tuple[str, ...] | None:
    """The names of the classes by position; None where they have none."""
    names = getattr(data, known.names) if known.names else None
    return names and tuple(name if isinstance(name, str) else ", ".join(name) for name in names)


def _entries(where: str, split: str, data: Any, known: Known) -> list[Entry]:
    """Named by the split's own classes: some sets number those that a split has."""
    classes, values = _names(data, known), getattr(data, known.labels)
    if known.labels == "_samples":
        values = [label for _, label in values]
    labels = [classes[int(value)] if classes else str(int(value)) for value in values]
    return [Entry(f"{split}/{i}", (label,), f"{where}, {split}/{i}") for i, label in enumerate(labels)]
