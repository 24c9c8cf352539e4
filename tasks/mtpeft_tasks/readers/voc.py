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
from typing import Any
from xml.etree import ElementTree

import torch

from mtpeft.api import DataError, Dataset, Sample
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


class Voc(Dataset):
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


def read(
    path: str,
    split: str,
    *,
    seed: int = 0,
    classes: str = "",
    degenerate: str = "error",
    outside: str = "error",
    origin: str = "0",
) -> Dataset:
    """Read one split.

    Args:
        path: the folder that holds ``Annotations``.
        split: ``train``, ``val`` or ``test``.
        seed: of splits that are held out.
        classes: keep only objects of these, comma-separated.
        degenerate: ``error``, or ``skip`` boxes without area.
        outside: ``error``, or ``clip`` boxes that leave their image.
        origin: ``0`` for coordinates as they stand, ``1`` for pixels counted from 1 with the last one included.

    Raises:
        DataError: naming file and field, for xml that cannot be read, a degenerate box, one outside its image, a
            missing image, or no objects at all.
    """
    root = files.folder(path)
    degenerate = choice_of("degenerate", degenerate, "skip")
    outside = choice_of("outside", outside, "clip")
    shift = float(files.choice("origin", origin, ("0", "1")))
    splits = _splits(root, seed)
    names = [name for members in splits.values() for name in members]
    annotations = {name: _objects(root / "Annotations" / f"{name}.xml", shift) for name in names}
    known = _classes(root, annotations)
    kept = files.asked_classes(known, classes)
    pictures = {file.stem: file for file in files.images_in(files.folder(root / "JPEGImages"))}
    items = []
    for name in splits[split]:
        file = root / "Annotations" / f"{name}.xml"
        if name not in pictures:
            raise DataError(
                f'"{file}" has no image "{root / "JPEGImages" / name}.*"', hint="add the image or drop the name"
            )
        chosen = [found for found in annotations[name] if found.label in kept]
        items.append(Annotated(pictures[name], file, _checked(file, pictures[name], chosen, degenerate, outside)))
    if not any(item.objects for item in items):
        raise DataError(f'"{root}" has no objects in the split "{split}"', hint="check Annotations and ImageSets/Main")
    return Voc(items, kept)


def choice_of(option: str, value: str, remedy: str) -> str:
    """``error`` or the remedy."""
    return files.choice(option, value, ("error", remedy))


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


def _checked(file: Path, image: Path, objects: list[Object], degenerate: str, outside: str) -> tuple[Object, ...]:
    height, width = files.image_size(image)
    kept = []
    for found in objects:
        left, top, right, bottom = found.box
        where = f'annotation "{file}", object {found.number} ({found.label}): box {list(found.box)}'
        if not (left >= 0 and top >= 0 and right <= width and bottom <= height):
            if outside == "error":
                raise DataError(
                    f"{where} is outside its image of {width} x {height}", hint="correct it, or add ?outside=clip"
                )
            left, right = (min(max(side, 0.0), float(width)) for side in (left, right))
            top, bottom = (min(max(side, 0.0), float(height)) for side in (top, bottom))
        if right > left and bottom > top:
            kept.append(Object(found.number, found.label, (left, top, right, bottom), found.difficult))
        elif degenerate == "error":
            raise DataError(f"{where} has no area", hint="correct it, or add ?degenerate=skip to the data's path")
    return tuple(kept)


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
