"""``yolo:PATH``: detection and segmentation from YOLO's label files.

PATH is a folder with ``data.yaml`` (``train``, ``val`` and ``test``: folders of images, or lists of them; ``names``),
or the yaml itself. Paths in it are relative to its ``path`` where that is a folder below PATH, else to PATH; ``../`` at
the beginning, which some exports write, is left off. Without a yaml: images in ``images/SPLIT``, ``SPLIT/images`` or
``images``, and ``classes.txt``. What splits are missing is held out of the training images: 20 % for test, 10 % for
validation; ``?test=val`` tests on the validation split.

Labels are text files: ``images/train/a.jpg`` has ``labels/train/a.txt``, and ``train/images/a.jpg`` has
``train/labels/a.txt``; an image without one has no objects, and one without an image is noticed. A line is ``class x y
width height`` of a box or ``class x1 y1 x2 y2 x3 y3 ...`` of a polygon, as fractions of the image's sides. Masks are
drawn from polygons; boxes go around them.
"""

from __future__ import annotations

import os.path
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mtpeft.api import DataError, Dataset, Split
from mtpeft_tasks.readers import files
from mtpeft_tasks.readers.boxes import Annotated, Boxed, Object, require_objects
from mtpeft_tasks.readers.painted import Drawn, ShapeReader
from mtpeft_tasks.readers.shapes import Polygons
from mtpeft_tasks.readers.yolo_yaml import Layout, described, find_yaml, guessed

_CLASS = re.compile("[0-9]{1,9}")
_FURTHEST = 2.0
"""Times the image's side: what lies beyond is no fraction, but most likely in pixels."""


@dataclass
class Yolo(ShapeReader):
    """Detection and segmentation from YOLO's label files."""

    def read(self, path: str, split: Split, *, gives: str, seed: int) -> Dataset:
        """Every label file of the split is read, and the headers of its images.

        Raises:
            DataError: naming file and entry, for what cannot be used.
            UsageError: for a class that the data does not have.
        """
        yaml = find_yaml(Path(path).expanduser())
        layout = described(yaml) if yaml else guessed(files.folder(path))
        self._notice_unused(layout)
        names = self.members(self.tested(layout.splits), split, seed)
        kept = self.kept(layout.classes, layout.classes, gives)
        tried = [self.attempt(self._item, layout, name, kept, gives) for name in names]
        items = [item for item in tried if item is not None]
        require_objects(items, kept, layout.root, split)
        return Drawn(items, kept) if gives == "mask" else Boxed(items, kept)

    def recognises(self, path: Path) -> bool:
        """A yaml, or text files in a folder ``labels`` beside one of images."""
        labels = [path / "labels", *path.glob("*/labels")]
        return find_yaml(path) is not None or any(
            (place.parent / "images").is_dir() and any(place.rglob("*.txt")) for place in labels
        )

    def place(self, file: Path, number: int) -> str:
        return f'"{file}", entry {number}'

    def _notice_unused(self, layout: Layout) -> None:
        """Say which files in the folders of labels belong to no image; names of classes may lie there."""
        used = {os.path.normpath(_labels(name)) for names in layout.splits.values() for name in names}
        folders = {Path(file).parent for file in used}
        places = {place for folder in folders for place in (folder, *folder.parents) if place.name == "labels"}
        root = layout.root
        found = {os.path.relpath(file, root) for place in places for file in (root / place).rglob("*.txt")}
        for file in sorted(found - used):
            path = Path(file)
            if path.name != "classes.txt" and not any(part.startswith(".") for part in path.parts):
                message = f'labels "{root / path}" belong to no image of any split'
                self.notice(DataError(message, hint="add the image to a split, or remove them: they are left out"))

    def _item(self, layout: Layout, name: str, kept: tuple[str, ...], gives: str) -> Annotated:
        image = layout.root / name
        item = Annotated(image, name, files.image_size(image), layout.root / _labels(name))
        lines = files.read_lines(item.file) if item.file.is_file() else []
        tried = [self.attempt(self._object, item, number, line, layout) for number, line in enumerate(lines, 1)]
        return self.filled(item, [found for found in tried if found is not None], kept, gives)

    def _object(self, item: Annotated, number: int, line: str, layout: Layout) -> Object:
        where, (first, *rest) = self.place(item.file, number), line.split()
        if not _CLASS.fullmatch(first) or int(first) >= len(layout.classes):
            hint = f"classes are numbers from 0 to {len(layout.classes) - 1}, of the names in {layout.named_in}"
            raise DataError(f'{where}: "{first:.20}" is no class', hint=hint)
        values = _fractions(where, rest)
        label, (height, width) = layout.classes[int(first)], item.size
        if len(values) != 4:
            shape = Polygons(((values.reshape(-1, 2) * (width, height)).astype(np.float32),))
            return Object(number, label, shape.extent(), shape=shape)
        x, y, wide, high = (values * (width, height, width, height)).tolist()
        return Object(number, label, (x - wide / 2, y - high / 2, x + wide / 2, y + high / 2))


def _fractions(where: str, fields: list[str]) -> np.ndarray:
    try:
        values = np.array([field.replace("_", "?") for field in fields], np.float64)  # 1_0 is no number outside Python
    except ValueError:
        text = f'"{" ".join(fields):.40}"'
        raise DataError(f"{where}: {text} are no numbers", hint="separate them by spaces") from None
    if len(values) < 4 or len(values) % 2:
        hint = "a box has 4: x, y, width, height; a polygon has 6 or more, in pairs"
        raise DataError(f"{where} has {len(values)} numbers after the class", hint=hint)
    wrong = ~(np.abs(values) <= _FURTHEST)  # also where one is not a number
    if wrong.any():
        message = f"{where}: {fields[int(wrong.argmax())]:.20} is no fraction of the image's side"
        raise DataError(message, hint="divide pixels by the image's width or height")
    return values


def _labels(name: str) -> Path:
    """The label file of an image: below ``labels`` where the image is below ``images``, else beside it."""
    path = Path(name)
    if "images" not in path.parts[:-1]:
        return path.with_suffix(".txt")
    last = len(path.parts) - 1 - path.parts[::-1].index("images")
    return Path(*path.parts[:last], "labels", *path.parts[last + 1 :]).with_suffix(".txt")
