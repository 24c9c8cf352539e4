"""A COCO json file, parsed and checked entry by entry into what the reader needs of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, Strict, TypeAdapter, ValidationError
from pydantic_core import from_json

from mtpeft.api import DataError
from mtpeft_tasks.readers.boxes import Object
from mtpeft_tasks.readers.shapes import Shape, polygons, runs
from mtpeft_tasks.readers.typed import in_words

_Id = Annotated[int, Strict()] | Annotated[str, Strict()]
_Text = Annotated[str, Strict(), Field(min_length=1)]
_Side = Annotated[int, Strict(), Field(gt=0)]
_Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class Category:
    """An entry of ``categories``."""

    id: _Id
    name: _Text


@dataclass(frozen=True, slots=True)
class Picture:
    """An entry of ``images``."""

    id: _Id
    file_name: _Text
    width: _Side | None = None
    height: _Side | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of ``annotations``; ``bbox`` is left, top, width and height."""

    image_id: _Id
    category_id: _Id
    bbox: tuple[_Number, _Number, _Number, _Number] | None = None
    segmentation: Any = None
    iscrowd: bool = False
    id: _Id | None = None


T = TypeVar("T")
Row = TypeVar("Row", Category, Picture)


@dataclass(frozen=True)
class Table:
    """What a file says.

    Attributes:
        pictures: by file name, each with its number in the file.
        objects: those of each picture, by its id.
        classes: the names of all categories, in the order of their ids.
        problems: what was left out, and why.
    """

    file: Path
    pictures: dict[str, tuple[int, Picture]]
    objects: dict[int | str, list[Object]]
    classes: tuple[str, ...]
    problems: tuple[DataError, ...]

    def used(self) -> set[str]:
        """The classes that some object has."""
        return {found.label for objects in self.objects.values() for found in objects}


def load(file: Path) -> Table:
    """A parsed file; one that did not change is parsed once for all splits and tasks of a process.

    Raises:
        DataError: for a file that cannot be read, or is no COCO json at all.
    """
    try:
        state = file.stat()
        return _load(file.absolute(), state.st_mtime_ns, state.st_size)
    except OSError as error:
        raise DataError(f'"{file}" cannot be read: {error.strerror}', hint="check the path and the file") from None


@lru_cache(maxsize=16)
def _load(file: Path, modified: int, size: int) -> Table:
    parser = _Parser(file)
    categories = parser.unique("categories", Category, lambda category: category.name)
    pictures = parser.unique("images", Picture, lambda picture: picture.file_name)
    names = {category.id: name for name, (_, category) in categories.items()}
    objects = parser.objects(names, [picture.id for _, picture in pictures.values()])
    ordered = sorted(names, key=lambda id_: (isinstance(id_, str), id_))
    return Table(file, pictures, objects, tuple(names[id_] for id_ in ordered), tuple(parser.problems))


class _Parser:
    """Goes through a file's sections; an entry that does not fit is left out and becomes a problem."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.problems: list[DataError] = []
        try:
            self.tree = from_json(file.read_bytes().removeprefix(b"\xef\xbb\xbf"))
        except ValueError as error:
            raise DataError(f'"{file}" is not valid json: {error}', hint="repair it, or export it again") from None

    def entries(self, section: str, kind: type[T]) -> Iterator[tuple[int, T]]:
        """The entries of a section with their numbers.

        Raises:
            DataError: where there is no such list.
        """
        rows = self.tree.get(section) if isinstance(self.tree, dict) else None
        if not isinstance(rows, list):
            hint = "COCO files have lists of images, categories and annotations"
            raise DataError(f'"{self.file}" has no list "{section}"', hint=hint)
        adapter = TypeAdapter(kind)
        for number, row in enumerate(rows):
            try:
                if isinstance(row, dict):
                    yield number, adapter.validate_python(row)
                else:
                    self.problem(section, number, f" is {row!r:.40}, not an object")
            except ValidationError as error:
                self.problem(section, number, in_words(error))

    def unique(self, section: str, kind: type[Row], key: Callable[[Row], str]) -> dict[str, tuple[int, Row]]:
        """The entries of a section by key, without those whose key or id is there already."""
        ids: set[int | str] = set()
        found: dict[str, tuple[int, Row]] = {}
        for number, entry in self.entries(section, kind):
            if key(entry) in found or entry.id in ids:
                self.problem(section, number, f': "{key(entry)}" or its id {entry.id!r} is there twice')
            else:
                found[key(entry)] = number, entry
                ids.add(entry.id)
        return found

    def objects(self, names: Mapping[int | str, str], pictures: Iterable[int | str]) -> dict[int | str, list[Object]]:
        """The objects of each picture, by the picture's id; ``names`` are the categories' by id."""
        objects: dict[int | str, list[Object]] = {id_: [] for id_ in pictures}
        ids: set[int | str | None] = set()
        for number, entry in self.entries("annotations", Entry):
            if entry.image_id not in objects:
                self.problem("annotations", number, f".image_id {entry.image_id!r} is the id of no image")
            elif entry.category_id not in names:
                self.problem("annotations", number, f".category_id {entry.category_id!r} is the id of no category")
            elif entry.id is not None and entry.id in ids:
                self.problem("annotations", number, f".id {entry.id!r} is there twice")
            elif found := self.object(number, entry, names[entry.category_id]):
                objects[entry.image_id].append(found)
            ids.add(entry.id)
        return objects

    def object(self, number: int, entry: Entry, label: str) -> Object | None:
        try:
            shape = _shape(entry.segmentation)
        except ValueError as error:
            self.problem("annotations", number, f".segmentation: {error}")
            return None
        if entry.bbox is not None:
            left, top, width, height = entry.bbox
            return Object(number, label, (left, top, left + width, top + height), entry.iscrowd, shape)
        if shape is not None:
            return Object(number, label, shape.extent(), entry.iscrowd, shape)
        self.problem("annotations", number, " has neither bbox nor segmentation")
        return None

    def problem(self, section: str, number: int, what: str) -> None:
        message = f'"{self.file}", {section}[{number}]{what}'
        self.problems.append(DataError(message, hint="correct the entry, or remove it"))


def _shape(segmentation: Any) -> Shape | None:
    """Polygons or run lengths; None for nothing at all."""
    if segmentation is None or segmentation == []:
        return None
    if isinstance(segmentation, list):
        return polygons(segmentation)
    if isinstance(segmentation, dict):
        return runs(segmentation.get("counts"), segmentation.get("size"))
    raise ValueError(f"{segmentation!r:.40} is neither polygons nor run lengths")
