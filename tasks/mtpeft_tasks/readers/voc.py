"""``voc:PATH``: detection and segmentation from Pascal VOC's layout.

Detection: ``JPEGImages/NAME.*`` with ``Annotations/NAME.xml``; splits from ``ImageSets/Main/{train,val,test}.txt``.
``classes.txt`` fixes the order of the classes; else they are sorted by name. Box coordinates are taken as they stand,
in pixels; ``?origin=1`` for files that count pixels from 1 and include the last one.

Segmentation: ``JPEGImages/NAME.*`` with ``SegmentationClass/NAME.png``; splits from ``ImageSets/Segmentation``. The
classes are those of ``classes.txt`` in the order of their values, else Pascal VOC's own 21; 255 is ignored.

What splits are missing is held out of the training images: 20 % for test, 10 % for validation; ``?test=val`` tests on
the validation split, as published results on VOC 2012 do.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal
from xml.etree import ElementTree

from mtpeft.api import DataError, Dataset, Split
from mtpeft_tasks.maps import IGNORED
from mtpeft_tasks.readers import files, walk
from mtpeft_tasks.readers.boxes import Annotated, Boxed, BoxReader, Object, require_objects
from mtpeft_tasks.readers.pixels import Pair, Values, listed, masked
from mtpeft_tasks.readers.splits import split_files

_SIDES = ("xmin", "ymin", "xmax", "ymax")
CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""Pascal VOC's own, in the order of their values in masks."""


@dataclass(frozen=True)
class Kind:
    """Where the lists and the labels of a target are.

    Attributes:
        word: for one of them.
    """

    lists: str
    folder: str
    suffix: str
    word: str


_BOXES = Kind("Main", "Annotations", ".xml", "annotation")
_MASKS = Kind("Segmentation", "SegmentationClass", ".png", "mask")


@dataclass
class Voc(BoxReader):
    """Detection and segmentation from Pascal VOC's layout.

    Attributes:
        origin: 0 for coordinates as they stand, 1 for pixels counted from 1 with the last one included.
    """

    gives: ClassVar[tuple[str, ...]] = ("boxes", "mask")

    origin: Literal[0, 1] = 0

    def read(self, path: str, split: Split, *, gives: str, seed: int) -> Dataset:
        """Every annotation is read, and the headers of the split's images; every mask is decoded once.

        Raises:
            DataError: naming file and field, for xml that cannot be read, a degenerate box, one outside its image, a
                missing or unreadable image or mask, a value that stands for no class, or no objects at all.
        """
        root = files.folder(path)
        if gives == "mask":
            splits = self.tested(self._splits(root, _MASKS))
            names = self.members(splits, split, seed)
            pictures = self._pictures(root)
            self._unnamed(root, _MASKS, {name for members in splits.values() for name in members}, pictures)
            pairs = [self.attempt(_pair, root, name, pictures) for name in names]
            return masked(self, root, split, [pair for pair in pairs if pair is not None], _values(root))
        splits = self.tested(self._splits(root, _BOXES))
        return self._boxed(root, splits, split, self.members(splits, split, seed))

    def recognises(self, path: Path) -> bool:
        """``Annotations`` with xml files, or ``SegmentationClass``, beside ``JPEGImages``."""
        labelled = any((path / "Annotations").glob("*.xml")) or (path / "SegmentationClass").is_dir()
        return (path / "JPEGImages").is_dir() and labelled

    def place(self, file: Path, number: int) -> str:
        return f'annotation "{file}", object {number}'

    def _splits(self, root: Path, kind: Kind) -> dict[str, list[str]]:
        """The names of each split that the data has; all that are labelled where it has no list of ``train``."""
        listed = root / "ImageSets" / kind.lists
        splits: dict[str, list[str]] = {name: self._names(file) for name, file in split_files(listed, ".txt").items()}
        if "train" not in splits:
            splits["train"] = sorted(file.stem for file in files.folder(root / kind.folder).glob(f"*{kind.suffix}"))
        if not splits["train"]:
            hint = f"expected {kind.folder}/NAME{kind.suffix} beside JPEGImages/NAME.jpg"
            raise DataError(f'"{root}" has no annotations', hint=hint)
        return splits

    def _names(self, file: Path) -> list[str]:
        names: dict[str, None] = {}
        for number, line in enumerate(files.read_lines(file), 1):
            name = _name(file.parents[2], line)
            if Path(name).name != name or "\0" in name or name in names:
                what = "is there twice" if name in names else "is no name of a file"
                hint = "lists have one name a line, without folder and suffix"
                self.report(DataError(f'"{file}", entry {number}: "{name}" {what}', hint=hint))
            else:
                names[name] = None
        return list(names)

    def _boxed(self, root: Path, splits: dict[str, list[str]], split: Split, names: list[str]) -> Boxed:
        every = dict.fromkeys(name for members in splits.values() for name in members)
        tried = {name: self.attempt(_objects, root / "Annotations" / f"{name}.xml", self.origin) for name in every}
        annotations = {name: objects for name, objects in tried.items() if objects is not None}
        kept = files.asked_classes(_classes(root, annotations), self.classes)
        pictures = self._pictures(root)
        self._unnamed(root, _BOXES, every, pictures)
        named = [name for name in names if name in annotations]
        items = [self.attempt(self._item, root, name, pictures, annotations[name], kept) for name in named]
        found = [item for item in items if item is not None]
        require_objects(found, kept, root, split)
        return Boxed(found, kept)

    def _pictures(self, root: Path) -> dict[str, Path]:
        """The images by the stems of their names."""
        found: dict[str, Path] = {}
        place = files.folder(root / "JPEGImages")
        for error in walk.folders_left_out(place):
            self.notice(error)
        for file in walk.images_in(place):
            if (other := found.setdefault(file.stem, file)) is not file:
                message = f'images "{other}" and "{file}" share an annotation'
                self.report(DataError(message, hint="give one of them another name, or remove it"))
        return found

    def _unnamed(self, root: Path, kind: Kind, named: Container[str], pictures: dict[str, Path]) -> None:
        """Notice images without label, and labels that no list names.

        Lists of masks leave most images out on purpose, Pascal VOC's own among them.
        """
        labelled = {file.stem for file in (root / kind.folder).glob(f"*{kind.suffix}")}
        chosen = kind is _MASKS and (root / "ImageSets" / kind.lists / "train.txt").is_file()
        hint = "that is no error: it is left out"
        for name in sorted(name for name in pictures.keys() - labelled if name not in named and not chosen):
            self.notice(DataError(f'image "{pictures[name]}" has no {kind.word}', hint=hint))
        for name in sorted(name for name in labelled if name not in named):
            file = root / kind.folder / f"{name}{kind.suffix}"
            self.notice(DataError(f'{kind.word} "{file}" is in no split', hint=hint))

    def _item(
        self, root: Path, name: str, pictures: dict[str, Path], objects: tuple[Object, ...], kept: tuple[str, ...]
    ) -> Annotated:
        file = root / "Annotations" / f"{name}.xml"
        image = _picture(file, name, pictures)
        item = Annotated(image, image.name, files.image_size(image), file)
        asked = frozenset(kept)
        whole = [self.attempt(self.checked, item, found) for found in objects if found.label in asked]
        return replace(item, objects=tuple(found for found in whole if found is not None))


def _name(root: Path, line: str) -> str:
    """The name in a line ``NAME`` or, as lists of one class have it, ``NAME 1``."""
    name, *flag = line.split()
    is_name = flag not in ([], ["1"], ["0"], ["-1"])
    if not is_name and flag:
        is_name = (root / "Annotations" / f"{line[:200]}.xml").is_file()
    return line if is_name else name


def _picture(file: Path, name: str, pictures: dict[str, Path]) -> Path:
    if name not in pictures:
        message = f'"{file}" has no image "{file.parents[1] / "JPEGImages" / name}.*"'
        raise DataError(message, hint="add the image or drop the name")
    return pictures[name]


def _pair(root: Path, name: str, pictures: dict[str, Path]) -> Pair:
    file = root / "SegmentationClass" / f"{name}.png"
    return Pair(_picture(file, name, pictures), file)


def _values(root: Path) -> Values:
    """What the values of masks stand for."""
    file, ignored = root / "classes.txt", frozenset({IGNORED})
    return listed(file, ignored) if file.is_file() else Values(CLASSES, ignored, published=True)


def _objects(file: Path, shift: float) -> tuple[Object, ...]:
    try:
        tree = ElementTree.fromstring(files.read_bytes(file))
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the last two: of encodings
        raise DataError(f'annotation "{file}" is not valid xml: {error}', hint="repair or remove the file") from None
    if tree.tag != "annotation":
        raise DataError(f'annotation "{file}" is a document "{tree.tag}"', hint="VOC's begin with <annotation>")
    return tuple(_object(file, number, node, shift) for number, node in enumerate(tree.iter("object"), 1))


def _object(file: Path, number: int, node: ElementTree.Element, shift: float) -> Object:
    label = _field(file, number, node, "name")
    left, top, right, bottom = (_side(file, number, node, side) for side in _SIDES)
    difficult = (node.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        message = f'annotation "{file}", object {number}: difficult "{difficult}" is neither 0 nor 1'
        raise DataError(message, hint="correct it, or remove the field")
    return Object(number, label, (left - shift, top - shift, right, bottom), difficult == "1")


def _field(file: Path, number: int, node: ElementTree.Element, field: str) -> str:
    text = (node.findtext(field) or "").strip()
    if not text:
        raise DataError(f'annotation "{file}", object {number}: no {field}', hint="complete the object or remove it")
    return text


def _side(file: Path, number: int, node: ElementTree.Element, side: str) -> float:
    text = _field(file, number, node, f"bndbox/{side}")
    try:
        if "_" in text:  # which Python would read as 10 in 1_0
            raise ValueError
        return float(text)
    except ValueError:
        message = f'annotation "{file}", object {number}: bndbox/{side} "{text}" is no number'
        raise DataError(message, hint="give it in pixels") from None


def _classes(root: Path, annotations: dict[str, tuple[Object, ...]]) -> tuple[str, ...]:
    listed = root / "classes.txt"
    if not listed.is_file():
        return tuple(sorted({found.label for objects in annotations.values() for found in objects}))
    names = files.read_names(listed)
    known = frozenset(names)
    for name, objects in annotations.items():
        for found in objects:
            if found.label not in known:
                raise DataError(
                    f'annotation "{name}.xml", object {found.number}: name "{found.label}" is not in "{listed}"',
                    hint="add it there",
                )
    return names
