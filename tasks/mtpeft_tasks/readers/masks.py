"""``masks:PATH``: semantic segmentation from images and index or palette masks of the same stem.

Layouts, for each split: ``SPLIT/`` with ``SPLITannot/``; ``images/SPLIT`` with ``masks/SPLIT`` (or ``annotations``,
``labels``); ``SPLIT/images`` with ``SPLIT/masks``; SPLIT being ``train``, ``val`` or ``test`` or a usual name for it
(``training``, ``validation``). Without splits: ``images`` with ``masks``. Images and masks
may lie in folders below these, in both alike. Missing splits are held out of the training
images: 20 % for test, 10 % for validation; ``?test=val`` tests on the validation split.

``classes.txt`` names the classes, one per line in the order of their values; a line ``NAME=VALUE`` (``void=11``) marks
a value that is ignored. ``?first=1`` counts from 1 and ignores 0. ``objectInfo150.txt`` (or ``.csv``), as ADE20K has
it, gives each class with its value, and 0 is ignored: ``masks:ADEChallengeData2016?test=val`` is all it takes. Without
either the classes are named by their values. 255 is always ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from mtpeft.api import SPLITS, DataError, Dataset, Split
from mtpeft_tasks.maps import IGNORED
from mtpeft_tasks.readers import files, walk
from mtpeft_tasks.readers.pixels import Pair, Values, listed, mask_value, masked, named, read_mask
from mtpeft_tasks.readers.splits import FOLDERS, SplitReader

_MASKS = ("masks", "annotations", "labels", "SegmentationClass")
_OBJECTS = ("objectInfo150.txt", "objectInfo150.csv", "object150_info.csv")


@dataclass
class Masks(SplitReader):
    """Segmentation from image and mask folders.

    Attributes:
        void: further mask values to ignore.
        first: the value of the first class; 1 where 0 stands for nothing.
    """

    gives: ClassVar[tuple[str, ...]] = ("mask",)

    void: tuple[int, ...] = ()
    first: Literal[0, 1] = 0

    def __post_init__(self) -> None:
        for value in self.void:
            mask_value("void", value)

    def read(self, path: str, split: Split, *, gives: str, seed: int) -> Dataset:
        """Every mask is decoded once to check its values; pixels of classes that are not asked for are ignored.

        Raises:
            DataError: naming the file, for a missing or unreadable mask, one of another size than its image, a value
                that stands for no class, or a split without any labelled pixel.
        """
        root = files.folder(path)
        splits = {name: pairs for name in SPLITS if (pairs := self._pairs(root, name)) is not None}
        if "train" not in splits:
            splits["train"] = self._unsplit(root)
        values = _values(root, frozenset(self.void) | {IGNORED} | set(range(self.first)), self.first, splits["train"])
        return masked(self, root, split, self.members(self.tested(splits), split, seed), values)

    def recognises(self, path: Path) -> bool:
        """A folder of images beside one of masks."""
        places = [place for split in SPLITS for place in _places(path, split)] + _unsplit_places(path)
        return any(all(folder.is_dir() and walk.images_under(folder)[0] for folder in place) for place in places)

    def _pairs(self, root: Path, split: str) -> list[Pair] | None:
        """The pairs of a split, or None if the data does not have it."""
        places = _places(root, split)
        return next((self._match(*place) for place in places if all(folder.is_dir() for folder in place)), None)

    def _unsplit(self, root: Path) -> list[Pair]:
        for images, masks in _unsplit_places(root):
            if images.is_dir() and masks.is_dir():
                return self._match(images, masks)
        hint = "expected train/ and trainannot/, or images/ and masks/"
        raise DataError(f'"{root}" has no images with masks', hint=hint)

    def _match(self, images: Path, masks: Path) -> list[Pair]:
        found, pictures = self._by_stem(masks), self._by_stem(images)
        pairs = []
        for name, image in pictures.items():
            if name in found:
                pairs.append(Pair(image, found[name]))
            else:
                self.report(DataError(f'image "{image}" has no mask', hint=f'add "{masks / name}.png"'))
        for name in sorted(found.keys() - pictures.keys()):
            self.report(
                DataError(f'mask "{found[name]}" has no image', hint=f'add "{images / name}.jpg", or remove it')
            )
        if not pairs:
            raise DataError(f'"{images}" has no images', hint="add some, of the names of the masks")
        return pairs

    def _by_stem(self, folder: Path) -> dict[str, Path]:
        """The images in a folder and below it, by their paths in it without the ending."""
        found: dict[str, Path] = {}
        images, others = walk.images_under(folder)
        for other in others:
            self.notice(walk.unread(other))
        for file in images:
            name = file.relative_to(folder).with_suffix("").as_posix()
            if (other := found.setdefault(name, file)) is not file:
                message = f'"{other}" and "{file}" are images of one name'
                self.report(DataError(message, hint="an image and its mask belong together by name: remove one"))
        return found


def _values(root: Path, ignored: frozenset[int], first: int, train: list[Pair]) -> Values:
    objects = files.first_file(root, _OBJECTS)
    if (root / "classes.txt").is_file():
        return listed(root / "classes.txt", ignored, first)
    return _numbered(train, ignored) if objects is None else _objects(objects, ignored)


def _objects(file: Path, ignored: frozenset[int]) -> Values:
    """ADE20K's list: value, share of pixels, numbers of training and validation images, stuff or not, names."""
    names = {0: ""}
    for number, line in enumerate(files.read_lines(file)[1:], 2):
        fields = line.split("," if file.suffix == ".csv" else None, 5)
        if len(fields) < 6:
            hint = "a line is value, ratio, train, val, stuff and name"
            raise DataError(f'"{file}", line {number}: "{line}" does not fit', hint=hint)
        names[mask_value(f'"{file}", line {number}', fields[0])] = fields[5].replace(";", ",").split(",")[0].strip()
    ignored |= {value for value in range(max(names) + 1) if not names.get(value)}
    return named(file, [names.get(value, "") for value in range(max(names) + 1)], ignored)


def _numbered(train: list[Pair], ignored: frozenset[int]) -> Values:
    found = np.zeros(256, np.int64)
    for pair in train:
        found += np.bincount(read_mask(pair.mask).ravel(), minlength=256)
    shown = [value for value in np.flatnonzero(found).tolist() if value not in ignored]
    return Values(tuple(str(value) for value in range(max(shown, default=-1) + 1)), ignored)


def _places(root: Path, split: str) -> list[tuple[Path, Path]]:
    places = []
    for name in FOLDERS[split]:
        places += [(root / name, root / f"{name}annot")]
        places += [(root / images / name, root / masks / name) for images in files.IMAGES for masks in _MASKS]
        places += [(root / name / images, root / name / masks) for images in files.IMAGES for masks in _MASKS]
    return places


def _unsplit_places(root: Path) -> list[tuple[Path, Path]]:
    return [(root / images, root / masks) for images in files.IMAGES for masks in _MASKS]
