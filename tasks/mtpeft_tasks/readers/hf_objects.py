"""Boxes in the rows of Hugging Face data sets: a column that holds, for each image, a list of objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from PIL import Image

from mtpeft.api import DataError
from mtpeft_tasks.readers.boxes import Annotated, Boxed, Object
from mtpeft_tasks.readers.labels import Source

BoxForm = Literal["xywh", "xyxy"]
_BOX = ("bbox", "box", "bboxes", "boxes")
_LABEL = ("category", "categories", "label", "labels", "category_id", "class")
_CROWD = ("iscrowd", "is_crowd", "difficult")


@dataclass(frozen=True)
class Layout:
    """What the fields of an object are called; ``classes`` are those that the format itself numbers, or None."""

    box: str
    label: str
    crowd: str
    classes: tuple[str, ...] | None

    @staticmethod
    def of(library: ModuleType, where: str, column: str, feature: Any) -> Layout:
        """The fields of a column of objects.

        Raises:
            DataError: for a column that holds none, naming what it holds.
        """
        fields = _fields(library, feature)
        box, label, crowd = (next((name for name in names if name in fields), "") for names in (_BOX, _LABEL, _CROWD))
        if not box or not label:
            held = f"its fields are {', '.join(fields)}" if fields else "it is no list of objects"
            hint = f"{held}; each object has a box ({_BOX[0]}) and a class ({_LABEL[0]}). ?objects=COLUMN names another"
            raise DataError(f'{where}: the column "{column}" holds no boxes with classes', hint=hint)
        numbered = isinstance(fields[label], library.ClassLabel)
        return Layout(box, label, crowd, tuple(fields[label].names) if numbered else None)

    def objects(self, row: Any, form: BoxForm, where: str) -> tuple[Object, ...]:
        """The objects of a row.

        Raises:
            DataError: naming row and object, for a box that is not four numbers, or an object without a known class.
        """
        return tuple(self._object(number, found, form, where) for number, found in enumerate(_each(row), 1))

    def _object(self, number: int, found: Mapping[str, Any], form: BoxForm, where: str) -> Object:
        where = f"{where}, object {number}"
        try:
            left, top, third, fourth = map(float, found[self.box])
        except (TypeError, ValueError, KeyError):
            message = f"{where}: {found.get(self.box)!s:.60} is no box"
            raise DataError(message, hint="a box is four numbers") from None
        box = (left, top, left + third, top + fourth) if form == "xywh" else (left, top, third, fourth)
        return Object(number, self._name(found.get(self.label), where), box, bool(found.get(self.crowd)))

    def _name(self, value: Any, where: str) -> str:
        if value is None or (self.classes is not None and not 0 <= value < len(self.classes)):
            known = "name or number it" if self.classes is None else f"classes go from 0 to {len(self.classes) - 1}"
            raise DataError(f"{where}: {value} is no class", hint=known)
        return str(value) if self.classes is None else self.classes[value]


class BoxedRows(Boxed):
    """Boxes whose images lie in tables."""

    def __init__(self, items: list[Annotated], classes: tuple[str, ...], source: Source) -> None:
        super().__init__(items, classes)
        self.source = source

    def picture(self, item: Annotated) -> Image.Image:
        return self.source.image(item.name)

    def origin(self, index: int) -> str:
        return self.source.origin(self.items[index].name)


def _fields(library: ModuleType, feature: Any) -> dict[str, Any]:
    """The features of one object's fields: the column is a list of tables, or a table of lists."""
    inner = feature.feature if isinstance(feature, library.List) else feature
    if not isinstance(inner, dict):
        return {}
    if inner is not feature:
        return dict(inner)
    return {name: field.feature for name, field in inner.items() if isinstance(field, library.List)}


def _each(row: Any) -> list[Mapping[str, Any]]:
    if isinstance(row, Mapping):
        lists = {name: values for name, values in row.items() if isinstance(values, list)}
        return [dict(zip(lists, values, strict=False)) for values in zip(*lists.values(), strict=False)]
    return list(row or ())
