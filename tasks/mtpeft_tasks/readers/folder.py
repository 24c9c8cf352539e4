"""``folder:PATH``: classification from image folders.

Layouts, by what is found in PATH:

- ``{train,val,test}/CLASS/file``
- ``CLASS/file`` with lists ``train.txt``, ``val.txt``, ``test.txt`` in PATH or in its parent (``pacs/train.txt`` serves
  ``folder:pacs/photo``). A line is ``relative/path`` or ``relative/path label``; without a label the class is the name
  of the file's folder.
- ``CLASS/file`` alone.

Missing splits are held out of the training images: 20 % for test, 10 % for validation. ``classes.txt`` fixes the order
of the classes; else they are sorted by name.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mtpeft.api import DataError, Dataset, Reader, Sample, Split
from mtpeft_tasks.readers import files

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Entry:
    """One image with its class; the path is relative to the data's root."""

    path: str
    label: str

    def __str__(self) -> str:
        return self.path


class Labelled(Dataset):
    """Images with one label each."""

    def __init__(self, root: Path, entries: list[Entry], classes: tuple[str, ...]) -> None:
        self.root, self.entries, self.classes = root, entries, classes
        self.index = {name: index for index, name in enumerate(classes)}

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Sample:
        entry = self.entries[index]
        image = files.read_image(self.root / entry.path)
        return Sample(image, {"label": self.index[entry.label], "classes": self.classes}, entry.path)

    def manifest(self) -> dict[str, Any]:
        shown = Counter(entry.label for entry in self.entries)
        return {
            "count": len(self),
            "sha256": files.digest(f"{entry.path}\t{entry.label}" for entry in self.entries),
            "classes": list(self.classes),
            "histogram": {name: shown[name] for name in self.classes},
        }


@dataclass
class Folder(Reader):
    """Classification from image folders, or from lists of files."""

    gives: ClassVar[tuple[str, ...]] = ("label",)

    def read(self, path: str, split: Split, *, gives: str, seed: int) -> Dataset:
        """Every image's header is read.

        Raises:
            DataError: for an empty folder, an unknown or missing label, or a file that is no image, naming it.
            UsageError: for a class that the data does not have.
        """
        root = files.folder(path)
        base, splits = _find(root)
        everything = [entry for entries in splits.values() for entry in entries]
        if not everything:
            raise DataError(
                f'"{root}" has no labelled images', hint="expected CLASS/image files, or train/CLASS/image files"
            )
        kept = files.asked_classes(_classes(root, everything), self.classes)
        splits = files.fill_splits(splits, {entry: entry.label for entry in everything}, seed)
        entries = [entry for entry in splits[split] if entry.label in kept]
        readable = [entry for entry in entries if self.attempt(files.image_size, base / entry.path)]
        return Labelled(base, readable, kept)

    def recognises(self, path: Path) -> bool:
        """Two or more folders of images, directly or under ``train``; a folder named ``images`` is no class."""
        root = path / "train" if (path / "train").is_dir() else path
        labels = [child for child in root.iterdir() if child.is_dir()] if root.is_dir() else []
        named = {child.name for child in labels} & set(files.IMAGES)
        return not named and sum(bool(files.images_in(child)) for child in labels) > 1


def _find(root: Path) -> tuple[Path, dict[str, list[Entry]]]:
    """The folder that paths are relative to, and the entries of the splits that the data has."""
    if (root / "train").is_dir():
        return root, {name: _scan(root, root / name) for name in SPLITS if (root / name).is_dir()}
    for base in (root, root.parent):
        lists = {name: base / f"{name}.txt" for name in SPLITS if (base / f"{name}.txt").is_file()}
        if "train" in lists:
            prefix = "" if base == root else f"{root.resolve().name}/"
            splits = {name: _listed(base, file, prefix) for name, file in lists.items()}
            if base == root or any(splits.values()):
                return base, splits
    return root, {"train": _scan(root, root)}


def _scan(root: Path, folder: Path) -> list[Entry]:
    labels = sorted(child for child in folder.iterdir() if child.is_dir())
    return [Entry(f.relative_to(root).as_posix(), label.name) for label in labels for f in files.images_in(label)]


def _listed(base: Path, file: Path, prefix: str) -> list[Entry]:
    """The entries of a list file whose path begins with the prefix."""
    lines = files.read_lines(file)
    return [_entry(base, file, number, line) for number, line in enumerate(lines, 1) if line.startswith(prefix)]


def _entry(base: Path, file: Path, number: int, line: str) -> Entry:
    if (base / line).is_file():
        path, label = line, Path(line).parent.name
    else:
        path, _, label = line.rpartition(" ")
        path = path.strip()
    if not path or not (base / path).is_file():
        hint = 'a line is "relative/path" or "relative/path label"'
        raise DataError(f'"{file}", entry {number}: there is no file "{path or line}"', hint=hint)
    if not label:
        raise DataError(
            f'"{file}", entry {number}: "{line}" has no label', hint="add it after a space, or use CLASS/file"
        )
    return Entry(path, label)


def _classes(root: Path, entries: list[Entry]) -> tuple[str, ...]:
    found = sorted({entry.label for entry in entries})
    listed = root / "classes.txt"
    if not listed.is_file():
        return tuple(found)
    known = tuple(files.read_lines(listed))
    for entry in entries:
        if entry.label not in known:
            raise DataError(
                f'"{entry.path}" has class "{entry.label}", which is not in "{listed}"', hint="add it there"
            )
    return known
