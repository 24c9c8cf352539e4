"""What readers of index and palette masks share: values with their names, checks, and the samples made of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtpeft.api import DataError, Dataset, Reader, Sample, Split, UsageError
from mtpeft_tasks.maps import IGNORED
from mtpeft_tasks.readers import files


@dataclass(frozen=True)
class Pair:
    """One image and its mask."""

    image: Path
    mask: Path

    def __str__(self) -> str:
        return self.image.name


@dataclass(frozen=True)
class Values:
    """What mask values stand for.

    Attributes:
        classes: the name of each value.
        ignored: values that stand for nothing.
        published: the layout itself fixes the names, so that data need not show them all.
    """

    classes: tuple[str, ...]
    ignored: frozenset[int]
    published: bool = False

    @property
    def named(self) -> tuple[str, ...]:
        """The classes, in the order of their values."""
        return tuple(name for value, name in enumerate(self.classes) if value not in self.ignored)

    def table(self, kept: tuple[str, ...]) -> np.ndarray:
        """From values ``(256,)`` to positions in ``kept``, 255 for all else."""
        table, rows = np.full(256, IGNORED, np.uint8), {name: row for row, name in enumerate(kept)}
        for value, name in enumerate(self.classes):
            if name in rows and value not in self.ignored:
                table[value] = rows[name]
        return table


class Masked(Dataset):
    """Images with a class for each pixel."""

    def __init__(self, pairs: list[Pair], values: Values, kept: tuple[str, ...], counts: list[np.ndarray]) -> None:
        self.pairs, self.values, self.classes = pairs, values, kept
        self.pixels = np.sum(counts, axis=0, dtype=np.int64, initial=0) + np.zeros(256, np.int64)
        self.present = [np.packbits(count > 0) for count in counts]
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

    def origin(self, index: int) -> str:
        return files.origin(self.pairs[index].image)

    def shown(self, index: int) -> frozenset[str]:
        rows = self.table[np.unpackbits(self.present[index]) > 0]
        return frozenset(self.classes[row] for row in rows.tolist() if row != IGNORED)

    def manifest(self) -> dict[str, Any]:
        """The histogram counts pixels; of published names, it has those that are shown."""
        stated = [f"{pair}\t{files.stated(pair.image, pair.mask)}" for pair in self.pairs]
        counts = np.bincount(self.table, weights=self.pixels, minlength=256)[: len(self.classes)]
        return {
            "count": len(self),
            "sha256": files.digest([*stated, *map(str, self.pixels.tolist())]),
            "classes": list(self.classes),
            "histogram": {
                name: int(count)
                for name, count in zip(self.classes, counts, strict=True)
                if count or not self.values.published
            },
        }


def masked(reader: Reader, root: Path, split: Split, pairs: list[Pair], values: Values) -> Masked:
    """The samples; every mask is decoded once to check its values, and pixels of classes not asked for are ignored.

    Raises:
        DataError: naming the file, for an unreadable mask, one of another size than its image, a value that stands for
            no class, or a split without any labelled pixel.
        UsageError: for a class that the data does not have.
    """
    kept = files.asked_classes(values.named, reader.classes)
    tried = zip(pairs, reader.attempt_all(partial(_counted, values=values), pairs), strict=True)
    counted = {pair: counts for pair, counts in tried if counts is not None}
    found = Masked(list(counted), values, kept, list(counted.values()))
    if counted and not found.pixels[found.table != IGNORED].any():
        hint = "check the classes and what is ignored; where test labels are withheld, add ?test=val to the data's path"
        raise DataError(f'"{root}" has no labelled pixel in the split "{split}"', hint=hint)
    return found


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
            message = f'mask "{path}" has the value {value}, but there are {len(values.named)} classes'
            raise DataError(message, hint=f"name it in classes.txt, or ignore it with ?void={value}")


def listed(file: Path, ignored: frozenset[int], first: int = 0) -> Values:
    """What ``classes.txt`` says: a name on each line in the order of values from ``first``, or ``NAME=IGNORED_VALUE``.

    Raises:
        DataError: where it names no class, or one twice.
        UsageError: for an ignored value that no mask has.
    """
    names = []
    for line in files.read_lines(file):
        name, equals, value = line.partition("=")
        if equals:
            ignored |= {mask_value(f'"{file}", {name.strip()}', value)}
        else:
            names.append(name)
    return named(file, [""] * first + names, ignored)


def named(file: Path, classes: Sequence[str], ignored: frozenset[int]) -> Values:
    """The names of values from 0 on, checked.

    Raises:
        DataError: where the file names no class, or one twice.
    """
    values = Values(tuple(classes), ignored)
    if not values.named:
        raise DataError(f'"{file}" names no class', hint="write one name per line")
    if len(classes) > IGNORED:
        raise DataError(f'"{file}" names {len(classes)} classes', hint="the values of masks go from 0 to 254")
    if twice := files.repeated(values.named):
        raise DataError(f'"{file}" names the class "{twice[0]}" twice', hint="give each value a name of its own")
    return values


def mask_value(what: str, value: int | str) -> int:
    """A value from 0 to 255.

    Raises:
        UsageError: for any other.
    """
    text = str(value).strip()
    if not re.fullmatch("[0-9]{1,3}", text) or int(text) > 255:
        raise UsageError(f"{what}: {text} is no mask value", hint="give a number from 0 to 255")
    return int(text)
