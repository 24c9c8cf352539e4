"""A small valid data set for every registered reader, for the tests that spoil it.

To add one: write ``def make_NAME(root, names) -> Made`` and put it into `GENERATORS` under the reader's id.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

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
    """

    data: str
    root: Path
    gives: tuple[str, ...]
    images: tuple[Path, ...]
    masks: tuple[Path, ...] = ()
    texts: tuple[Path, ...] = ()
    optional: tuple[Path, ...] = ()
    edits: tuple[Edit, ...] = ()


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


def make_folder(root: Path, names: Sequence[str]) -> Made:
    """Class folders, with lists of files."""
    labels = {name: CLASSES[number % 2] for number, name in enumerate(names)}
    images = [picture(root / labels[name] / f"{name}.png", number) for number, name in enumerate(names)]
    lists = [
        text(root / f"{split}.txt", "".join(f"{labels[name]}/{name}.png {labels[name]}\n" for name in members))
        for split, members in divided(names).items()
    ]
    order = text(root / "classes.txt", "\n".join(CLASSES))
    first = f"{labels[names[0]]}/{names[0]}.png {labels[names[0]]}\n"
    edits = (
        Edit("twice", lists[0], first, first * 2),
        Edit("absolute", lists[0], first, f"{root.parent / OUTSIDE} big cat\n"),
        Edit("outside", lists[0], first, f"../{OUTSIDE} big cat\n"),
        Edit("outside, no label", lists[0], first, f"../{OUTSIDE}\n"),
        Edit("null byte", lists[0], first, "big cat/\0.png big cat\n"),
        Edit("long", lists[0], first, "x" * 5000 + "\n"),
        Edit("a folder", lists[0], first, "big cat big cat\n"),
        Edit("two files", lists[0], ".png big cat\n", ".png "),
        Edit("class twice", order, CLASSES[0], f"{CLASSES[0]}\n{CLASSES[0]}"),
        Edit("class missing", order, CLASSES[0], "cow", named="classes.txt"),
    )
    return Made(f"folder:{root}", root, ("label",), tuple(images), texts=(*lists, order), edits=edits)


def make_voc(root: Path, names: Sequence[str]) -> Made:
    """Two boxes in each image, one of each class."""
    images = [picture(root / "JPEGImages" / f"{name}.png", number) for number, name in enumerate(names)]
    boxes = ((1, 2, 10, 12), (12, 3, 24, 16))
    objects = "".join(
        f"<object><name>{escape(label)}</name><difficult>{number}</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>\n"
        for number, (label, (x1, y1, x2, y2)) in enumerate(zip(CLASSES, boxes, strict=True))
    )
    head = '<?xml version="1.0" encoding="utf-8"?>\n'
    whole = f"{head}<annotation>\n<filename>x</filename>{objects}</annotation>\n"
    files = [text(root / "Annotations" / f"{name}.xml", whole) for name in names]
    lists = [
        text(root / "ImageSets" / "Main" / f"{split}.txt", "".join(f"{name}\n" for name in members))
        for split, members in divided(names).items()
    ]
    edits = (
        *(Edit(value, files[0], "<xmin>1<", f"<xmin>{value}<") for value in ("nan", "inf", "1e999", "1_0", "-1", "25")),
        Edit("no area", files[0], "<xmax>10<", "<xmax>1<"),
        Edit("no box", files[0], "<xmin>1</xmin>", ""),
        Edit("no name", files[0], f"<name>{CLASSES[0]}</name>", ""),
        Edit("difficult", files[0], "<difficult>0<", "<difficult>perhaps<"),
        Edit("encoding", files[0], 'encoding="utf-8"', 'encoding="utf-9"'),
        Edit("another root", files[0], "annotation>", "html>"),
        Edit("no root", files[0], whole, head),
        Edit("twice", lists[0], f"{names[0]}\n", f"{names[0]}\n" * 2),
        Edit("outside", lists[0], f"{names[0]}\n", "../../outside\n"),
        Edit("absolute", lists[0], f"{names[0]}\n", f"{root.parent / 'outside'}\n"),
        Edit("null byte", lists[0], f"{names[0]}\n", "a\0b\n"),
        Edit("long", lists[0], f"{names[0]}\n", "x" * 5000 + "\n", named="too long"),
    )
    return Made(f"voc:{root}", root, ("boxes",), tuple(images), texts=(*lists, *files[:2]), edits=edits)


def make_masks(root: Path, names: Sequence[str]) -> Made:
    """Three values, of which one is void, and ignored pixels."""
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    values[4:], values[8:], values[12:] = 1, 2, 255
    images, masks = [], []
    for split, members in divided(names).items():
        for name in members:
            images.append(picture(root / split / f"{name}.png", len(images)))
            masks.append(root / f"{split}annot" / f"{name}.png")
            masks[-1].parent.mkdir(exist_ok=True)
            Image.fromarray(values).save(masks[-1])
    order = text(root / "classes.txt", "\n".join((*CLASSES, "void=2")) + "\n")
    edits = (
        Edit("class twice", order, CLASSES[1], CLASSES[0]),
        Edit("void is no number", order, "=2", "=²"),
        Edit("void is no byte", order, "=2", "=256"),
        Edit("too few", order, "void=2", "", named="annot"),
        Edit("too many", order, "void=2", "\n".join(map(str, range(300)))),
    )
    return Made(f"masks:{root}", root, ("mask",), tuple(images), tuple(masks), (order,), edits)


GENERATORS: dict[str, Generator] = {"folder": make_folder, "voc": make_voc, "masks": make_masks}
