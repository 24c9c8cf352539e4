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

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mtpeft.api import DataError
from mtpeft_tasks.readers import files
from mtpeft_tasks.readers.labels import SPLITS, Entry, Files, Found, LabelReader, class_names


@dataclass
class Folder(LabelReader):
    """Classification from image folders, or from lists of files."""

    gives: ClassVar[tuple[str, ...]] = ("label",)

    def find(self, path: str) -> Found:
        root = files.folder(path)
        base, splits = self._find(root)
        if not any(splits.values()):
            hint = "expected CLASS/image files, or train/CLASS/image files"
            raise DataError(f'"{root}" has no labelled images', hint=hint)
        return Found(Files(base), splits, class_names(root), root / "classes.txt")

    def recognises(self, path: Path) -> bool:
        """Two or more folders of images, directly or under ``train``; a folder named ``images`` is no class."""
        root = path / "train" if (path / "train").is_dir() else path
        labels = [child for child in root.iterdir() if child.is_dir()] if root.is_dir() else []
        named = {child.name for child in labels} & set(files.IMAGES)
        return not named and sum(bool(files.images_in(child)) for child in labels) > 1

    def _find(self, root: Path) -> tuple[Path, dict[str, list[Entry]]]:
        """The folder that paths are relative to, and the entries of the splits that the data has."""
        if (root / "train").is_dir():
            return root, {name: _scan(root, root / name) for name in SPLITS if (root / name).is_dir()}
        for base in (root, root.parent):
            lists = {name: base / f"{name}.txt" for name in SPLITS if (base / f"{name}.txt").is_file()}
            if "train" in lists:
                prefix = "" if base == root else f"{root.resolve().name}/"
                splits = {name: self._listed(base, file, prefix) for name, file in lists.items()}
                if base == root or any(splits.values()):
                    return base, splits
        return root, {"train": _scan(root, root)}

    def _listed(self, base: Path, file: Path, prefix: str) -> list[Entry]:
        """The entries of a list file whose path begins with the prefix."""
        lines = [(number, line) for number, line in enumerate(files.read_lines(file), 1) if line.startswith(prefix)]
        tried = (self.attempt(_entry, base, f'"{file}", entry {number}', line) for number, line in lines)
        return [entry for entry in tried if entry is not None]


def _scan(root: Path, folder: Path) -> list[Entry]:
    labels = sorted(child for child in folder.iterdir() if child.is_dir())
    paths = [(file.relative_to(root).as_posix(), label.name) for label in labels for file in files.images_in(label)]
    return [Entry(path, (label,), f'"{path}"') for path, label in paths]


def _entry(base: Path, where: str, line: str) -> Entry:
    """A line ``relative/path label``, or ``relative/path`` alone in the folder of its class."""
    try:
        files.inside(base, line, where)
        path, label = line, Path(line).parent.name
    except DataError:
        path, _, label = line.rpartition(" ")
        files.inside(base, path.strip() or line, where)
    if not label:
        hint = "add it after a space, or use CLASS/file"
        raise DataError(f'{where}: "{line}" has no label', hint=hint)
    return Entry(path.strip(), (label,), where)
