"""Small data sets on disk, and what a reader makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from mtpeft.api import DataError, Dataset
from mtpeft.data.reader import open_reader


def picture(path: Path, colour: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 8), (colour, 0, 0)).save(path)
    return path


def pictures(root: Path, *paths: str) -> Path:
    for number, path in enumerate(paths):
        picture(root / path, number)
    return root


def vtab(root: Path, test: int = 6) -> str:
    """``images/SPLIT/000000.jpg label``, with 8, 2 and 6 images in place of 800, 200 and the test set."""
    lines: dict[str, list[str]] = {}
    for split, count in (("train800", 8), ("val200", 2), ("test", test)):
        paths = [f"images/{split}/{number:06}.jpg" for number in range(count)]
        pictures(root, *paths)
        lines[split] = [f"{path} {number % 2 * 11}" for number, path in enumerate(paths)]
    lines["train800val200"] = lines["train800"] + lines["val200"]
    for name, entries in lines.items():
        (root / f"{name}.txt").write_text("\n".join(entries))
    return f"list:{root}"


def read(data: str, split: str = "train", *, gives: str = "label", seed: int = 0) -> Dataset:
    """The samples of ``READER:PATH?option=value``."""
    reader, place = open_reader(data)
    return reader.read(place, split, gives=gives, seed=seed)


def problems(data: str, split: str = "train", *, gives: str = "label") -> tuple[Dataset, list[DataError]]:
    """What a reader leaves over, and what it reports."""
    reader, place = open_reader(data)
    reader.found = []
    return reader.read(place, split, gives=gives, seed=0), reader.found


def names(data: Dataset) -> list[str]:
    return [data[index].name for index in range(len(data))]


def labels(data: Dataset) -> list[Any]:
    """The class of each sample by name, or the names of its classes."""
    targets = [data[index].target for index in range(len(data))]
    return [
        data.classes[target["label"]] if "label" in target else [data.classes[i] for i in target["labels"].tolist()]
        for target in targets
    ]


def rows(data: str, *, gives: str = "label") -> list[tuple[str, Any]]:
    """Name and labels of every sample of all splits, sorted."""
    parts = [read(data, split, gives=gives) for split in ("train", "val", "test")]
    return sorted(row for part in parts for row in zip(names(part), labels(part), strict=True))
