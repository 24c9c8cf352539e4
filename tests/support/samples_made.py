"""What the small data sets have in common that tests spoil; see samples.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 24, 16
COUNT = 12
OUTSIDE = "outside.png"
"""A sound image beside the data's root, which no data may name."""
CLASSES = ("big cat", "dög")


@dataclass(frozen=True)
class Edit:
    """A change of a text file, after which the data must be refused, in words that name ``named`` (or the file)."""

    what: str
    file: Path
    old: str
    new: str
    named: str = ""


@dataclass(frozen=True)
class Made:
    """A data set as it lies on the disk.

    Attributes:
        data: ``READER:PATH?option=value``.
        gives: the targets that it holds, of those that its reader gives.
        images: its pictures; spoiling one must be noticed.
        masks: pictures that are labels.
        texts: annotations and lists, to be mutated.
        optional: those of them that may be empty, where there is nothing to say of an image.
        edits: what its format in particular must refuse.
        entries: what messages call its images, where that is not by their files.
    """

    data: str
    root: Path
    gives: tuple[str, ...]
    images: tuple[Path, ...]
    masks: tuple[Path, ...] = ()
    texts: tuple[Path, ...] = ()
    optional: tuple[Path, ...] = ()
    edits: tuple[Edit, ...] = ()
    entries: tuple[str, ...] = ()


Generator = Callable[[Path, Sequence[str]], Made]
"""From an empty folder and `COUNT` file stems to a data set."""


def picture(path: Path, number: int) -> Path:
    """Noise of its own for each number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    return path


def divided(names: Sequence[str]) -> dict[str, list[str]]:
    """Half for training, a quarter each for validation and test."""
    half, quarter = COUNT // 2, COUNT // 4
    return {
        "train": list(names[:half]), "val": list(names[half : half + quarter]), "test": list(names[half + quarter :]),
    }  # fmt: skip
