"""``folder:PATH``: classification from image folders.

Layouts, by what is found in PATH:

- ``{train,val,test}/CLASS/file``, or usual names for these in any case (``Training``, ``valid``, ``dev``, ``eval``)
- ``CLASS/file`` with lists ``train.txt``, ``val.txt``, ``test.txt`` in PATH or in its parent (``pacs/train.txt`` serves
  ``folder:pacs/photo``). A line is ``relative/path`` or ``relative/path label``; without a label the class is the name
  of the file's folder.
- ``CLASS/file`` alone.

Images lie in the folder of their class or below it, and are all that Pillow decodes (``.heic`` and ``.jxl`` need its
plugins). Missing splits are held out of the training images: 20 % for test, 10 % for validation. ``classes.txt`` fixes
the order of the classes; else they are sorted by name.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mtpeft.api import DataError
from mtpeft_tasks.readers import files, walk
from mtpeft_tasks.readers.labels import Entry, Files, Found, LabelReader, class_names, holds, image_in
from mtpeft_tasks.readers.splits import split_files, split_folders


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
        root = split_folders(path).get("train", path) if path.is_dir() else path
        labels = [child for child in root.iterdir() if child.is_dir()] if root.is_dir() else []
        named = {child.name for child in labels} & set(files.IMAGES)
        return not named and sum(bool(walk.images_under(child)[0]) for child in labels) > 1

    def _find(self, root: Path) -> tuple[Path, dict[str, list[Entry]]]:
        """The folder that paths are relative to, and the entries of the splits that the data has."""
        folders = split_folders(root)
        if "train" in folders:
            self._notice_beside(root, set(folders.values()))
            return root, {name: self._scan(root, folder) for name, folder in folders.items()}
        for base in (root, root.parent):
            lists = split_files(base, ".txt")
            if "train" in lists:
                prefix = "" if base == root else f"{root.resolve().name}/"
                splits = {name: self._listed(base, file, prefix) for name, file in lists.items()}
                if base == root or any(splits.values()):
                    return base, splits
        return root, {"train": self._scan(root, root)}

    def _scan(self, root: Path, folder: Path) -> list[Entry]:
        """The images in class folders; what else lies there is noticed, unless it is hidden."""
        entries = []
        for image in walk.images_in(folder):
            if not image.is_dir():
                message = f'image "{image}" is in no folder of a class, and left out'
                self.notice(DataError(message, hint="move it to the folder of its class"))
        for label in sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")):
            images, others = walk.images_under(label)
            paths = [file.relative_to(root).as_posix() for file in images]
            entries += [Entry(path, (label.name,), f'"{path}"') for path in paths]
            for other in others:
                self.notice(walk.unread(other))
            if not images:
                self.notice(DataError(f'"{label}" holds no image, and is no class', hint="fill or remove the folder"))
        return entries

    def _notice_beside(self, root: Path, splits: Container[Path]) -> None:
        """Say which folders beside the splits hold images that belong to none."""
        for folder in sorted(child for child in root.iterdir() if child.is_dir() and child not in splits):
            if not folder.name.startswith(".") and walk.images_under(folder)[0]:
                hint = "name it train, val or test, or read it by itself"
                self.notice(DataError(f'folder "{folder}" is no split by its name, and left out', hint=hint))

    def _listed(self, base: Path, file: Path, prefix: str) -> list[Entry]:
        """The entries of a list file whose path begins with the prefix."""
        lines = [(number, line) for number, line in enumerate(files.read_lines(file), 1) if line.startswith(prefix)]
        tried = (self.attempt(_entry, base, f'"{file}", entry {number}', line) for number, line in lines)
        return [entry for entry in tried if entry is not None]


def _entry(base: Path, where: str, line: str) -> Entry:
    """A line ``relative/path``, or ``relative/path label``: up to one of its spaces it names a file."""
    path = _file_in(base, line) or line.rpartition(" ")[0].strip() or line
    label = line.removeprefix(path).strip()
    image_in(base, path, where)
    if _file_in(base, label):
        raise DataError(f'{where}: "{line}" names two files', hint="write one image per line")
    label = label or Path(path).parent.name
    if not label:
        raise DataError(f'{where}: "{line}" has no label', hint="add it after a space, or use CLASS/file")
    return Entry(path, (label,), where)


def _file_in(base: Path, line: str) -> str:
    """What a line begins with, up to one of its spaces or the end, that is a file; empty where nothing is."""
    words = line.split(" ")
    starts = (" ".join(words[:count]) for count in range(len(words), 0, -1))
    return next((start for start in starts if holds(base, start)), "")
