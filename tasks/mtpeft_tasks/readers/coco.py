"""``coco:PATH``: detection and segmentation from COCO json files.

Layouts, by what is found in PATH, SPLIT being ``train``, ``val`` or ``test`` or a usual name for it (``valid``,
``trainingset``):

- ``annotations/instances_SPLIT2017.json`` (or 2014, or no year) or ``annotations/SPLIT.json``;
- ``SPLIT/_annotations.coco.json`` or ``SPLIT/annotations.json``;
- a json file itself.

Images are looked for in PATH and beside the json, there directly or in ``SPLIT2017``, ``SPLIT``, ``images/SPLIT``,
``images`` or ``JPEGImages``; ``?images=FOLDER`` says where they are, relative to PATH's folder. What splits are missing
is held out of the training images: 20 % for test, 10 % for validation; ``?test=val`` tests on the validation split, as
published results on COCO do.

Boxes are ``bbox``, or go around the segmentation where an object has none; ``iscrowd`` marks objects as difficult.
Masks are drawn from polygons and run lengths. Classes are in the order of the category ids; a category that no object
of any split has is dropped, unless ``classes`` names it.
"""

from __future__ import annotations

import os.path
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mtpeft.api import SPLITS, DataError, Dataset, Split
from mtpeft_tasks.readers import files, walk
from mtpeft_tasks.readers.boxes import Annotated, Boxed, require_objects
from mtpeft_tasks.readers.coco_json import Table, load
from mtpeft_tasks.readers.painted import Drawn, ShapeReader
from mtpeft_tasks.readers.splits import FOLDERS

_YEARS = ("2017", "2014", "")
_ALONE = ("_annotations.coco.json", "annotations.json")
_GLANCE = 1 << 16  # bytes
_TRIED = 16  # file names


@dataclass
class Coco(ShapeReader):
    """Detection and segmentation from COCO json files.

    Attributes:
        images: the folder of the images, relative to the folder of PATH; empty to look where they usually are.
    """

    images: str = ""

    def read(self, path: str, split: Split, *, gives: str, seed: int) -> Dataset:
        """Every entry of the files is checked, and the headers of the split's images.

        Raises:
            DataError: naming file and entry, for what cannot be used.
            UsageError: for a class that the data does not have.
        """
        root, found = _find(Path(path).expanduser())
        tables = {name: load(file) for name, file in self.tested(found).items()}
        names = self.members({name: list(table.pictures) for name, table in tables.items()}, split, seed)
        table = tables[split if split in tables else "train"]
        for problem in (*table.problems, *table.flaws[gives].values()):
            self.report(problem)
        base = self._base(root, table)
        every = list(dict.fromkeys(name for one in tables.values() for name in one.classes))
        used = set().union(*(one.used() for one in tables.values()))
        kept = self.kept(every, [name for name in every if name in used], gives)
        tried = [self.attempt(self._item, table, base, name, kept, gives) for name in names]
        items = [item for item in tried if item is not None]
        self._notice_unlisted(items, base, tables)
        require_objects(items, kept, Path(path), split)
        return Drawn(items, kept) if gives == "mask" else Boxed(items, kept)

    def recognises(self, path: Path) -> bool:
        """One of the layouts, its json beginning as COCO's do."""
        json = [path] if path.suffix == ".json" else list(_files(path).values())
        return any(file.is_file() and _looks_right(file) for file in json)

    def place(self, file: Path, number: int) -> str:
        return f'"{file}", annotations[{number}]'

    def _base(self, root: Path, table: Table) -> Path:
        """The folder that file names are relative to: where most of the first ones are.

        Raises:
            DataError: where none of them is anywhere.
        """
        if self.images:
            return files.folder(root / self.images)
        first, where = list(table.pictures)[:_TRIED], f'"{table.file}", images[0].file_name'
        tried = {place: [_missing(place, name, where) for name in first] for place in _places(root, table.file)}
        base = max(tried, key=lambda place: tried[place].count(None))
        if first and None not in tried[base] and (error := tried[root][0]):
            raise DataError(error.message, hint=f"{error.hint}, or say where they are with ?images=FOLDER")
        return base

    def _notice_unlisted(self, items: Iterable[Annotated], base: Path, tables: Mapping[str, Table]) -> None:
        """Say which images lie among those of the split and have no entry."""
        listed = {os.path.normpath(base / name) for table in tables.values() for name in table.pictures}
        names = " or ".join(sorted({table.file.name for table in tables.values()}))
        for folder in sorted({Path(os.path.normpath(item.image)).parent for item in items}):
            for file in walk.images_in(folder):
                if os.fspath(file) not in listed:
                    message = f'image "{file}" has no entry in {names}'
                    self.notice(DataError(message, hint="add one, also for an image without objects: it is left out"))

    def _item(self, table: Table, base: Path, name: str, kept: tuple[str, ...], gives: str) -> Annotated:
        number, picture = table.pictures[name]
        where = f'"{table.file}", images[{number}]'
        image = files.inside(base, name, f"{where}.file_name")
        height, width = files.image_size(image)
        if (picture.width or width, picture.height or height) != (width, height):
            message = f"{where} is {picture.width} x {picture.height}, its image {width} x {height}"
            raise DataError(message, hint="correct width and height; the image counts as it is shown, turned upright")
        item = Annotated(image, name, (height, width), table.file)
        return self.filled(item, table.of(picture, gives), kept, gives)


def _find(path: Path) -> tuple[Path, dict[str, Path]]:
    """The folder of the data, and the json file of each split that it has."""
    if path.is_file():
        return path.parent.parent if path.parent.name == "annotations" else path.parent, {"train": path}
    found = _files(files.folder(path))
    if not found:
        hint = "expected annotations/instances_train2017.json, train/_annotations.coco.json, or a json file itself"
        raise DataError(f'"{path}" has no COCO json', hint=hint)
    return path, found


def _files(root: Path) -> dict[str, Path]:
    names = {split: [name for folder in FOLDERS[split] for name in _names(folder)] for split in SPLITS}
    tried = {split: files.first_file(root, names[split]) for split in SPLITS}
    found = {split: file for split, file in tried.items() if file is not None}
    alone = files.first_file(root, _ALONE)
    return found or ({"train": alone} if alone else {})


def _names(split: str) -> list[str]:
    whole = [f"annotations/{name}.json" for name in (*(f"instances_{split}{year}" for year in _YEARS), split)]
    return [*whole, *(f"{split}/{name}" for name in _ALONE)]


def _places(root: Path, file: Path) -> Iterator[Path]:
    """Where the images of a json file may be, the most specific first."""
    split = file.stem.removeprefix("instances_")
    for base in (file.parent, root):
        yield from (base / split, *(base / images / split for images in files.IMAGES))
    for base in (file.parent, root):
        yield from (base, *(base / images for images in files.IMAGES))


def _missing(place: Path, name: str, where: str) -> DataError | None:
    try:
        files.inside(place, name, where)
    except DataError as error:
        return error
    return None


def _looks_right(file: Path) -> bool:
    start = files.beginning(file, _GLANCE)
    return any(b'"%b"' % section in start for section in (b"images", b"annotations", b"categories"))
