"""``voc:PATH``: detection from Pascal VOC xml files.

``JPEGImages/NAME.*`` with ``Annotations/NAME.xml``; splits from ``ImageSets/Main/{train,val,test}.txt``, and what is
missing is held out of the training images (20 % for test, 10 % for validation). ``classes.txt`` fixes the order of the
classes; else they are sorted by name. Box coordinates are taken as they stand, in pixels; ``?origin=1`` for files that
count pixels from 1 and include the last one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal
from xml.etree import ElementTree

import torch

from mtpeft.api import DataError, Dataset, Reader, Sample, Split
from mtpeft_tasks.readers import files

_SIDES = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class Object:
    """One annotated object: its number in the file, class, box xyxy in pixels, and whether it is marked difficult."""

    number: int
    label: str
    box: tuple[float, float, float, float]
    difficult: bool


@dataclass(frozen=True)
class Annotated:
    """One image with its objects."""

    image: Path
    file: Path
    objects: tuple[Object, ...]


class Boxed(Dataset):
    """Images with boxes."""

    def __init__(self, items: list[Annotated], classes: tuple[str, ...]) -> None:
        self.items, self.classes = items, classes
        self.index = {name: index for index, name in enumerate(classes)}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        item = self.items[index]
        target = {
            "boxes": torch.tensor([found.box for found in item.objects], dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor([self.index[found.label] for found in item.objects], dtype=torch.int64),
            "difficult": torch.tensor([found.difficult for found in item.objects], dtype=torch.bool),
            "classes": self.classes,
        }
        return Sample(files.read_image(item.image), target, item.image.name)

    def manifest(self) -> dict[str, Any]:
        shown = Counter(found.label for item in self.items for found in item.objects)
        lines = [f"{item.image.name}\t{found.label}\t{found.box}" for item in self.items for found in item.objects]
        return {
            "count": len(self),
            "sha256": files.digest([*(item.image.name for item in self.items), *lines]),
            "classes": list(self.classes),
            "histogram": {name: shown[name] for name in self.classes},
        }


@dataclass
class Voc(Reader):
    """Detection from Pascal VOC xml files.

    Attributes:
        degenerate: ``error``, or ``skip`` boxes without area.
        outside: ``error``, or ``clip`` boxes that leave their image.
        origin: 0 for coordinates as they stand, 1 for pixels counted from 1 with the last one included.
    """

    gives: ClassVar[tuple[str, ...]] = ("boxes",)

    degenerate: Literal["error", "skip"] = "error"
    outside: Literal["error", "clip"] = "error"
    origin: Literal[0, 1] = 0

    def read(self, path: str, split: Split, *, gives: str, seed: int) -> Dataset:
        """Every annotation is read, and the headers of the split's images.

        Raises:
            DataError: naming file and field, for xml that cannot be read, a degenerate box, one outside its image, a
                missing image, or no objects at all.
        """
        root = files.folder(path)
        splits = _splits(root, seed)
        names = [name for members in splits.values() for name in members]
        tried = {name: self.attempt(_objects, root / "Annotations" / f"{name}.xml", self.origin) for name in names}
        annotations = {name: objects for name, objects in tried.items() if objects is not None}
        kept = files.asked_classes(_classes(root, annotations), self.classes)
        pictures = {file.stem: file for file in files.images_in(files.folder(root / "JPEGImages"))}
        named = [name for name in splits[split] if name in annotations]
        items = [self.attempt(self._item, root, name, pictures, annotations[name], kept) for name in named]
        found = [item for item in items if item is not None]
        if not any(item.objects for item in found):
            hint = "check Annotations and ImageSets/Main"
            raise DataError(f'"{root}" has no objects in the split "{split}"', hint=hint)
        return Boxed(found, kept)

    def recognises(self, path: Path) -> bool:
        """``Annotations`` with xml files beside ``JPEGImages``."""
        return (path / "JPEGImages").is_dir() and any((path / "Annotations").glob("*.xml"))

    def _item(
        self, root: Path, name: str, pictures: dict[str, Path], objects: tuple[Object, ...], kept: tuple[str, ...]
    ) -> Annotated:
        file = root / "Annotations" / f"{name}.xml"
        if name not in pictures:
            hint = "add the image or drop the name"
            raise DataError(f'"{file}" has no image "{root / "JPEGImages" / name}.*"', hint=hint)
        size = files.image_size(pictures[name])
        chosen = [found for found in objects if found.label in kept]
        whole = [self.attempt(self._checked, file, size, found) for found in chosen]
        return Annotated(pictures[name], file, tuple(found for found in whole if found is not None))

    def _checked(self, file: Path, size: tuple[int, int], found: Object) -> Object | None:
        """The object with its box inside the image; None where it is to be skipped."""
        height, width = size
        left, top, right, bottom = found.box
        where = f'annotation "{file}", object {found.number} ({found.label}): box {list(found.box)}'
        if not (left >= 0 and top >= 0 and right <= width and bottom <= height):
            if self.outside == "error":
                message = f"{where} is outside its image of {width} x {height}"
                raise DataError(message, hint="correct it, or add ?outside=clip to the data's path")
            left, right = (min(max(side, 0.0), float(width)) for side in (left, right))
            top, bottom = (min(max(side, 0.0), float(height)) for side in (top, bottom))
        if right > left and bottom > top:
            return Object(found.number, found.label, (left, top, right, bottom), found.difficult)
        if self.degenerate == "error":
            raise DataError(f"{where} has no area", hint="correct it, or add ?degenerate=skip to the data's path")
        return None


def _splits(root: Path, seed: int) -> dict[str, list[str]]:
    listed = root / "ImageSets" / "Main"
    splits = {
        name: [line.split()[0] for line in files.read_lines(listed / f"{name}.txt")]
        for name in ("train", "val", "test")
        if (listed / f"{name}.txt").is_file()
    }
    if "train" not in splits:
        splits["train"] = sorted(file.stem for file in files.folder(root / "Annotations").glob("*.xml"))
    if not splits["train"]:
        raise DataError(f'"{root}" has no annotations', hint="expected Annotations/NAME.xml beside JPEGImages/NAME.jpg")
    return files.fill_splits(splits, dict.fromkeys(splits["train"], ""), seed)


def _objects(file: Path, shift: float) -> tuple[Object, ...]:
    try:
        tree = ElementTree.parse(file).getroot()
    except FileNotFoundError:
        raise DataError(f'annotation "{file}" does not exist', hint="add it, or drop its name from the list") from None
    except (ElementTree.ParseError, UnicodeDecodeError) as error:
        raise DataError(f'annotation "{file}" is not valid xml: {error}', hint="repair or remove the file") from None
    return tuple(_object(file, number, node, shift) for number, node in enumerate(tree.iter("object"), 1))


def _object(file: Path, number: int, node: ElementTree.Element, shift: float) -> Object:
    label = _field(file, number, node, "name")
    left, top, right, bottom = (_side(file, number, node, side) for side in _SIDES)
    difficult = (node.findtext("difficult") or "0").strip() == "1"
    return Object(number, label, (left - shift, top - shift, right, bottom), difficult)


def _field(file: Path, number: int, node: ElementTree.Element, field: str) -> str:
    text = (node.findtext(field) or "").strip()
    if not text:
        raise DataError(f'annotation "{file}", object {number}: no {field}', hint="complete the object or remove it")
    return text


def _side(file: Path, number: int, node: ElementTree.Element, side: str) -> float:
    text = _field(file, number, node, f"bndbox/{side}")
    try:
        return float(text)
    except ValueError:
        message = f'annotation "{file}", object {number}: bndbox/{side} "{text}" is no number'
        raise DataError(message, hint="give it in pixels") from None


def _classes(root: Path, annotations: dict[str, tuple[Object, ...]]) -> tuple[str, ...]:
    listed = root / "classes.txt"
    if not listed.is_file():
        return tuple(sorted({found.label for objects in annotations.values() for found in objects}))
    known = tuple(files.read_lines(listed))
    for name, objects in annotations.items():
        for found in objects:
            if found.label not in known:
                raise DataError(
                    f'annotation "{name}.xml", object {found.number}: name "{found.label}" is not in "{listed}"',
                    hint="add it there",
                )
    return known
