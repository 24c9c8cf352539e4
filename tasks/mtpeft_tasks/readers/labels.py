"""What the readers of labelled images share: entries, the order of classes, splits, and the checks of them all.

A reader says what its layout holds (`LabelReader.find`); the rest is the same for all of them:

- ``classes.txt`` beside the data, or the format itself, fixes the order of the classes; else they are sorted, numbers
  by value. A label that is a number and no name of a class is the position of one.
- Missing splits are held out of the training images: 20 % for test, 10 % for validation.
- An image named twice is an error; where a class stands that training never shows is noticed.
"""

from __future__ import annotations

import posixpath
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mtpeft.api import SPLITS, DataError, Dataset, Reader, Sample, Split
from mtpeft_tasks.readers import files

SEPARATORS = ";|"


@dataclass(frozen=True)
class Entry:
    """One image with its classes.

    Attributes:
        path: of the image, relative to the data's root, or what else its source knows it by.
        labels: the names of its classes, or their positions.
        where: the file and entry that say so, for messages.
    """

    path: str
    labels: tuple[str, ...]
    where: str = field(compare=False)

    def __str__(self) -> str:
        return self.path


class Source(ABC):
    """Where the images of entries come from."""

    @abstractmethod
    def image(self, path: str) -> Image.Image:
        """An upright RGB image.

        Raises:
            DataError: naming it, where it cannot be read.
        """

    def checked(self, path: str) -> str:
        """The path, after a look at the image that decodes nothing, where there is something to look at.

        Raises:
            DataError: naming it, where it is no image.
        """
        return path

    def origin(self, path: str) -> str:
        """What the image is known by, among those of other sources too."""
        return path

    def state(self, path: str) -> str:
        """What tells an image from another one of this path; empty where nothing does."""
        return ""


@dataclass(frozen=True)
class Files(Source):
    """Image files under a folder."""

    root: Path

    def image(self, path: str) -> Image.Image:
        return files.read_image(self.root / path)

    def checked(self, path: str) -> str:
        files.image_size(self.root / path)
        return path

    def origin(self, path: str) -> str:
        return files.origin(self.root / path)

    def state(self, path: str) -> str:
        return files.stated(self.root / path)


@dataclass(frozen=True)
class Found:
    """What a layout holds.

    Attributes:
        source: where the images come from.
        splits: those that the data has itself, at least ``train``.
        classes: all of them in order, or None to sort what the entries name.
        listed: the file that fixes ``classes``, for messages.
        nested: the validation split is a part of the training split, as a protocol has it.
    """

    source: Source
    splits: Mapping[str, Sequence[Entry]]
    classes: tuple[str, ...] | None = None
    listed: Path | str = "classes.txt"
    nested: bool = False

    @cached_property
    def known(self) -> frozenset[str]:
        return frozenset(self.classes or ())


class Labelled(Dataset):
    """Images with one label each (``label``), or with any number of them (``labels (N,) int64``)."""

    def __init__(self, source: Source, entries: list[Entry], classes: tuple[str, ...], *, several: bool) -> None:
        self.source, self.entries, self.classes, self.several = source, entries, classes, several
        self.index = {name: index for index, name in enumerate(classes)}

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Sample:
        entry = self.entries[index]
        labels = [self.index[label] for label in entry.labels]
        target = {"labels": torch.tensor(labels, dtype=torch.int64)} if self.several else {"label": labels[0]}
        return Sample(self.source.image(entry.path), {**target, "classes": self.classes}, entry.path)

    def origin(self, index: int) -> str:
        return self.source.origin(self.entries[index].path)

    def shown(self, index: int) -> frozenset[str]:
        return frozenset(self.entries[index].labels)

    def manifest(self) -> dict[str, Any]:
        """The hash is over names, labels and the content of the files."""
        shown = Counter(label for entry in self.entries for label in entry.labels)
        lines = ("\t".join((entry.path, *entry.labels, self.source.state(entry.path))) for entry in self.entries)
        return {
            "count": len(self),
            "sha256": files.digest(lines),
            "classes": list(self.classes),
            "histogram": {name: shown[name] for name in self.classes},
        }


@dataclass
class LabelReader(Reader, ABC):
    """A reader of labelled images; see `Reader`."""

    @abstractmethod
    def find(self, path: str) -> Found:
        """The entries of a path, with what their layout says of splits and classes.

        Raises:
            DataError: naming file and field, where there are none.
        """

    def read(self, path: str, split: Split, *, gives: str, seed: int) -> Dataset:
        """Every entry is checked, and the headers of the split's images.

        Raises:
            DataError: for a label that is missing or unknown, and an image that is missing, no image, or named twice,
                naming file and entry.
            UsageError: for a class that the data does not have.
        """
        found, several = self.find(path), gives == "labels"
        splits = self._once(self._settled(found, several), nested=found.nested)
        everything = [entry for entries in splits.values() for entry in entries]
        order = found.classes or in_order(label for entry in everything for label in entry.labels)
        kept = files.asked_classes(order, self.classes)
        self._notice_unseen(splits, kept)
        groups = {entry: "" if several else entry.labels[0] for entry in everything}
        held = files.fill_splits(splits, groups, seed).get(split, [])
        asked = frozenset(kept)
        chosen = [entry for entry in (_only(entry, asked) for entry in held) if several or entry.labels]
        if several and chosen and not any(entry.labels for entry in chosen):
            raise DataError(f'"{path}" has no labels in the split "{split}"', hint="check its labels and classes")
        tried = zip(chosen, self.attempt_all(found.source.checked, [entry.path for entry in chosen]), strict=True)
        readable = [entry for entry, path in tried if path is not None]
        return Labelled(found.source, readable, kept, several=several)

    def _settled(self, found: Found, several: bool) -> dict[str, list[Entry]]:
        """The entries with names for labels, as many as there may be."""
        settled = {}
        for name in (name for name in SPLITS if name in found.splits):
            tried = (self.attempt(_named, entry, found, several) for entry in found.splits[name])
            settled[name] = [entry for entry in tried if entry is not None]
        return settled

    def _once(self, splits: Mapping[str, list[Entry]], *, nested: bool) -> dict[str, list[Entry]]:
        """Without the entries that name an image again; a nested validation split may."""
        first: dict[str, tuple[str, Entry]] = {}
        kept: dict[str, list[Entry]] = {name: [] for name in splits}
        for name, entries in splits.items():
            for entry in entries:
                before, other = first.setdefault(posixpath.normpath(entry.path), (name, entry))
                if other is entry or (nested and name == "val" != before):
                    kept[name].append(entry)
                else:
                    self.report(_repeated(name, entry, before, other))
        return kept

    def _notice_unseen(self, splits: Mapping[str, list[Entry]], kept: tuple[str, ...]) -> None:
        """Say where each class is named that training never shows."""
        trained = {label for entry in splits.get("train", ()) for label in entry.labels}
        for entry in (entry for name in ("val", "test") for entry in splits.get(name, ())):
            for label in sorted(set(entry.labels) & set(kept) - trained):
                trained.add(label)
                message = f'{entry.where}: class "{label}" is never shown in training'
                self.notice(DataError(message, hint="add training images of it, or leave it out with ?classes="))


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Each name once, sorted; numbers by value, before other names."""
    return tuple(sorted(set(names), key=lambda name: (0, int(name), name) if _is_number(name) else (1, 0, name)))


def class_names(root: Path) -> tuple[str, ...] | None:
    """What ``classes.txt`` in a folder lists; None where there is none.

    Raises:
        DataError: where it is empty, or names a class twice.
    """
    listed = root / "classes.txt"
    return files.read_names(listed) if listed.is_file() else None


def labels_of(text: str, where: str, separators: str = SEPARATORS) -> tuple[str, ...]:
    """The labels in a text, parted by any of the separators; none in an empty one.

    Raises:
        DataError: for the label "nan", which tables write for a missing value.
    """
    for separator in separators[1:]:
        text = text.replace(separator, separators[0])
    parts = text.split(separators[0]) if separators else [text]
    labels = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
    for label in labels:
        if label.lower() == "nan":
            raise DataError(f'{where}: label "{label}" is no class', hint="name the class, or remove the entry")
    return labels


def image_root(root: Path, chosen: str, names: Sequence[str]) -> Path:
    """The folder that names are relative to: the chosen one, or the root or that folder of images that has them.

    Raises:
        DataError: where the chosen folder does not exist.
    """
    if chosen:
        return files.folder(root / chosen)
    places = [root, *(root / name for name in ("Images", *files.IMAGES))]
    return next((place for place in places if any(holds(place, name) for name in names[:3])), root)


def image_in(root: Path, path: str, where: str) -> str:
    """The path of a file below the root.

    Raises:
        DataError: naming who names it, where there is none.
    """
    if not files.inside(root, path, where).is_file():
        raise DataError(f'{where}: "{path}" is no file', hint=f'give the path of an image below "{root}"')
    return path


def holds(place: Path, name: str) -> bool:
    """Whether there is a file of this name in a folder."""
    try:
        return files.inside(place, name, "").is_file()
    except DataError:
        return False


def _repeated(name: str, entry: Entry, before: str, other: Entry) -> DataError:
    """Why an image may not be named again."""
    hint = "keep one of the two"
    if set(entry.labels) != set(other.labels):
        said = f"has {_said(entry.labels)}, but {_said(other.labels)} in {other.where}"
    elif name != before:
        said, hint = f"is in the split {name}, and in {before} by {other.where}", "an image belongs to one split"
    else:
        said = f"is named twice, by {other.where} too"
    return DataError(f'{entry.where}: "{entry.path}" {said}', hint=hint)


def _named(entry: Entry, found: Found, several: bool) -> Entry:
    if not several and len(entry.labels) != 1:
        what = f"has {len(entry.labels)} labels ({', '.join(entry.labels)})" if entry.labels else "has no label"
        hint = 'give it one, or use the task type "multi-label"'
        raise DataError(f'{entry.where}: "{entry.path}" {what}', hint=hint)
    if found.classes is None:
        return entry
    labels = (label if label in found.known else _at(label, entry.where, found) for label in entry.labels)
    return Entry(entry.path, tuple(labels), entry.where)


def _at(label: str, where: str, found: Found) -> str:
    """The class at the position that a label says."""
    classes = found.classes or ()
    if _is_number(label) and int(label) < len(classes):
        return classes[int(label)]
    raise DataError(f'{where} has class "{label}", which is not in "{found.listed}"', hint="add it there")


def _only(entry: Entry, kept: frozenset[str]) -> Entry:
    return Entry(entry.path, tuple(label for label in entry.labels if label in kept), entry.where)


def _said(labels: tuple[str, ...]) -> str:
    return " and ".join(f'"{label}"' for label in labels) or "no label"


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) < 10
