"""A COCO json file, parsed and checked entry by entry into what the reader needs of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, Strict, TypeAdapter, ValidationError
from pydantic_core import from_json

from mtpeft.api import DataError
from mtpeft_tasks.readers import files
from mtpeft_tasks.readers.boxes import Object
from mtpeft_tasks.readers.shapes import Box, Shape, polygons, runs
from mtpeft_tasks.readers.typed import in_words


def _whole(value: Any) -> Any:
    """A float of no fraction as the integer that it was before an exporter touched it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _flag(value: Any) -> Any:
    return False if value is None else _whole(value)


_Id = Annotated[Annotated[int, Strict()] | Annotated[str, Strict()], BeforeValidator(_whole)]
_Text = Annotated[str, Strict(), Field(min_length=1)]
_Side = Annotated[int, Strict(), Field(gt=0), BeforeValidator(_whole)]
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
    """An entry of ``annotations``; what its use needs of ``bbox`` and ``segmentation`` is checked then."""

    image_id: _Id
    category_id: _Id
    bbox: Any = None
    segmentation: Any = None
    iscrowd: Annotated[bool, BeforeValidator(_flag)] = False
    id: _Id | None = None


@dataclass(frozen=True, slots=True)
class _Placed:
    """What is checked of an entry for boxes: left, top, width and height."""

    bbox: tuple[_Number, _Number, _Number, _Number]


_PLACED = TypeAdapter(_Placed)
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
        flaws: what is wrong with objects for one use of them, by target and number: a box may be right whose
            segmentation is not.
    """

    file: Path
    pictures: dict[str, tuple[int, Picture]]
    objects: dict[int | str, list[Object]]
    classes: tuple[str, ...]
    problems: tuple[DataError, ...]
    flaws: dict[str, dict[int, DataError]]

    def of(self, picture: Picture, gives: str) -> list[Object]:
        """The objects of a picture that can be used for a target."""
        return [found for found in self.objects[picture.id] if found.number not in self.flaws[gives]]

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
    return Table(file, pictures, objects, tuple(names[id_] for id_ in ordered), tuple(parser.problems), parser.flaws)


class _Parser:
    """Goes through a file's sections; an entry that does not fit is left out and becomes a problem."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.problems: list[DataError] = []
        self.flaws: dict[str, dict[int, DataError]] = {"boxes": {}, "mask": {}}
        try:
            self.tree = from_json(files.read_bytes(file).removeprefix(b"\xef\xbb\xbf"))
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
            else:
                objects[entry.image_id].append(self.object(number, entry, names[entry.category_id]))
            ids.add(entry.id)
        return objects

    def object(self, number: int, entry: Entry, label: str) -> Object:
        """An object, with what is wrong with it for boxes and for masks among the flaws."""
        shape, box = self.shape(number, entry), self.box(number, entry)
        if box is None and shape is not None and entry.bbox is None:
            box = shape.extent()
        elif box is None and entry.bbox is None:
            self.flaw("boxes", number, " has neither bbox nor segmentation")
        return Object(number, label, box or (0.0, 0.0, 0.0, 0.0), entry.iscrowd, shape)

    def shape(self, number: int, entry: Entry) -> Shape | None:
        try:
            return _shape(entry.segmentation)
        except ValueError as error:
            self.flaw("mask", number, f".segmentation: {error}")
            return None

    def box(self, number: int, entry: Entry) -> Box | None:
        if entry.bbox is None:
            return None
        try:
            left, top, width, height = _PLACED.validate_python({"bbox": entry.bbox}).bbox
        except ValidationError as error:
            self.flaw("boxes", number, in_words(error))
            return None
        return left, top, left + width, top + height

    def flaw(self, gives: str, number: int, what: str) -> None:
        self.flaws[gives][number] = _wrong(self.file, "annotations", number, what)

    def problem(self, section: str, number: int, what: str) -> None:
        self.problems.append(_wrong(self.file, section, number, what))


def _wrong(file: Path, section: str, number: int, what: str) -> DataError:
    return DataError(f'"{file}", {section}[{number}]{what}', hint="correct the entry, or remove it")


def _shape(segmentation: Any) -> Shape | None:
    """Polygons or run lengths; None for nothing at all."""
    if segmentation is None or segmentation == []:
        return None
    if isinstance(segmentation, list):
        return polygons(segmentation)
    if isinstance(segmentation, dict):
        return runs(segmentation.get("counts"), segmentation.get("size"))
    raise ValueError(f"{segmentation!r:.40} is neither polygons nor run lengths")
