"""``masks:PATH``: semantic segmentation from images and index or palette masks of the same stem.

Layouts, for each split: ``SPLIT/`` with ``SPLITannot/``; ``images/SPLIT`` with ``masks/SPLIT`` (or ``annotations``,
``labels``); ``SPLIT/images`` with ``SPLIT/masks``. Without splits: ``images`` with ``masks``. Missing splits are held
out of the training images: 20 % for test, 10 % for validation.

``classes.txt`` names the classes, one per line in the order of their values; a line ``NAME=VALUE`` (``void=11``) marks
a value that is ignored. Without it the classes are named by their values. 255 is always ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from mtpeft.api import DataError, Dataset, Reader, Sample, Split, UsageError
from mtpeft_tasks.readers import files

IGNORED = 255
SPLITS = ("train", "val", "test")
_MASKS = ("masks", "annotations", "labels", "SegmentationClass")


@dataclass(frozen=True)
class Pair:
    """One image and its mask."""

    image: Path
    mask: Path

    def __str__(self) -> str:
        return self.image.name


@dataclass(frozen=True)
class Values:
    """What mask values stand for: ``classes[i]`` is the name of value i; ``ignored`` values stand for nothing."""

    classes: tuple[str, ...]
    ignored: frozenset[int]

    def table(self, kept: tuple[str, ...]) -> np.ndarray:
        """From values ``(256,)`` to positions in ``kept``, 255 for all else."""
        table = np.full(256, IGNORED, np.uint8)
        for value, name in enumerate(self.classes):
            if name in kept and value not in self.ignored:
                table[value] = kept.index(name)
        return table


class Masked(Dataset):
    """Images with a class for each pixel."""

    def __init__(self, pairs: list[Pair], values: Values, kept: tuple[str, ...], pixels: np.ndarray) -> None:
        self.pairs, self.values, self.classes, self.pixels = pairs, values, kept, pixels
        self.table = values.table(kept)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        pair = self.pairs[index]
        image = files.read_image(pair.image)
        mask = read_mask(pair.mask)
        _check_values(pair.mask, np.bincount(mask.ravel(), minlength=256), self.values)
        target = {"mask": torch.from_numpy(self.table[mask]), "classes": self.classes}
        return Sample(image, target, pair.image.name)

    def manifest(self) -> dict[str, Any]:
        """The histogram counts pixels."""
        counts = np.bincount(self.table, weights=self.pixels, minlength=256)[: len(self.classes)]
        return {
            "count": len(self),
            "sha256": files.digest([*map(str, self.pairs), *map(str, self.pixels.tolist())]),
            "classes": list(self.classes),
            "histogram": {name: int(count) for name, count in zip(self.classes, counts, strict=True)},
        }


@dataclass
class Masks(Reader):
    """Segmentation from image and mask folders.

    Attributes:
        void: further mask values to ignore.
    """

    gives: ClassVar[tuple[str, ...]] = ("mask",)

    void: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for value in self.void:
            _value("void", value)

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
        pairs = files.fill_splits(splits, dict.fromkeys(splits["train"], ""), seed)[split]
        values = _values(root, frozenset(self.void) | {IGNORED}, splits["train"])
        kept = files.asked_classes([n for v, n in enumerate(values.classes) if v not in values.ignored], self.classes)
        counted = {pair: counts for pair in pairs if (counts := self.attempt(_counted, pair, values)) is not None}
        pixels = np.sum([*counted.values()], axis=0, dtype=np.int64, initial=0) + np.zeros(256, np.int64)
        if counted and not pixels[values.table(kept) != IGNORED].any():
            raise DataError(f'"{root}" has no labelled pixel in the split "{split}"', hint="check classes.txt and void")
        return Masked(list(counted), values, kept, pixels)

    def recognises(self, path: Path) -> bool:
        """A folder of images beside one of masks."""
        places = [place for split in SPLITS for place in _places(path, split)] + _unsplit_places(path)
        return any(all(folder.is_dir() and files.images_in(folder) for folder in place) for place in places)

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
        found = {file.stem: file for file in files.images_in(masks)}
        pairs = []
        for image in files.images_in(images):
            if image.stem in found:
                pairs.append(Pair(image, found[image.stem]))
            else:
                self.report(DataError(f'image "{image}" has no mask', hint=f'add "{masks / image.stem}.png"'))
        if not pairs:
            raise DataError(f'"{images}" has no images', hint=f"known suffixes: {', '.join(sorted(files.SUFFIXES))}")
        return pairs


def read_mask(path: Path) -> np.ndarray:
    """The values ``(H, W) uint8`` of an index or palette mask.

    Raises:
        DataError: naming the file, where it cannot be read, is in colours, or has values above 255.
    """
    image = files.decode(path)
    if image.mode not in ("1", "L", "P", "I", "I;16"):
        hint = "convert it to an index or palette PNG whose values are class numbers"
        raise DataError(f'mask "{path}" is a colour image ({image.mode})', hint=hint)
    values = np.asarray(image)
    if values.max(initial=0) > 255 or values.min(initial=0) < 0:
        raise DataError(
            f'mask "{path}" has the value {values.max()}, above 255', hint="number the classes from 0 to 254"
        )
    return values.astype(np.uint8)


def _counted(pair: Pair, values: Values) -> np.ndarray:
    """Pixels of each value ``(256,)``, after every check."""
    mask = read_mask(pair.mask)
    size = files.image_size(pair.image)
    if mask.shape != size:
        message = f'mask "{pair.mask}" is {mask.shape[1]} x {mask.shape[0]}, its image {size[1]} x {size[0]}'
        raise DataError(message, hint="a mask has the size of its image")
    counts = np.bincount(mask.ravel(), minlength=256)
    _check_values(pair.mask, counts, values)
    return counts


def _check_values(path: Path, counts: np.ndarray, values: Values) -> None:
    for value in np.flatnonzero(counts).tolist():
        if value >= len(values.classes) and value not in values.ignored:
            message = f'mask "{path}" has the value {value}, but there are {len(values.classes)} classes'
            raise DataError(message, hint=f"name it in classes.txt, or ignore it with ?void={value}")


def _values(root: Path, ignored: frozenset[int], train: list[Pair]) -> Values:
    listed = root / "classes.txt"
    if not listed.is_file():
        return _numbered(train, ignored)
    names = []
    for line in files.read_lines(listed):
        name, equals, value = line.partition("=")
        if equals:
            ignored |= {_value(f'"{listed}", {name.strip()}', value)}
        else:
            names.append(name)
    if not names:
        raise DataError(f'"{listed}" names no class', hint="write one name per line")
    return Values(tuple(names), ignored)


def _numbered(train: list[Pair], ignored: frozenset[int]) -> Values:
    found = np.zeros(256, np.int64)
    for pair in train:
        found += np.bincount(read_mask(pair.mask).ravel(), minlength=256)
    shown = [value for value in np.flatnonzero(found).tolist() if value not in ignored]
    return Values(tuple(str(value) for value in range(max(shown, default=-1) + 1)), ignored)


def _value(what: str, value: int | str) -> int:
    text = str(value).strip()
    if not text.isdigit() or int(text) > 255:
        raise UsageError(f"{what}: {text} is no mask value", hint="give a number from 0 to 255")
    return int(text)


def _places(root: Path, split: str) -> list[tuple[Path, Path]]:
    places = [(root / split, root / f"{split}annot")]
    places += [(root / images / split, root / masks / split) for images in files.IMAGES for masks in _MASKS]
    return places + [(root / split / images, root / split / masks) for images in files.IMAGES for masks in _MASKS]


def _unsplit_places(root: Path) -> list[tuple[Path, Path]]:
    return [(root / images, root / masks) for images in files.IMAGES for masks in _MASKS]
