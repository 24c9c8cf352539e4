"""PASCAL-Context and NYUD-v2, generated in the layout of their multi-task releases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

SIZE = (30, 40)  # height, width


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        Image.fromarray(values).save(path)


def texts(root: Path, **lists: list[str]) -> None:
    for name, members in lists.items():
        (root / f"{name}.txt").parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.txt").write_text("\n".join(members) + "\n")


def box(value: float = 1, dtype: type = np.uint8) -> np.ndarray:
    """A rectangle in rows 10 to 19 and columns 5 to 24."""
    values = np.zeros(SIZE, dtype)
    values[10:20, 5:25] = value
    return values


def struct(names: str, *rows: tuple) -> np.ndarray:
    """What MATLAB calls a structure array ``(1, N)``."""
    made = np.empty((1, len(rows)), [(name, object) for name in names.split()])
    for index, row in enumerate(rows):
        made[0, index] = row
    return made


def annotation(kind: int, *parts: tuple[str, np.ndarray]) -> dict:
    found = struct("part_name mask", *parts) if parts else np.zeros((0, 0))
    thing = struct("class class_ind mask parts", ("person" if kind == 15 else "cat", np.array([[kind]]), box(), found))
    return {"anno": struct("imname objects", ("name", thing))}


def head_and_arm() -> list[tuple[str, np.ndarray]]:
    arm = np.zeros(SIZE, np.uint8)
    arm[15:20, 5:10] = 1
    return [("hair", box()), ("luarm", arm)]


def pascal(root: Path, test: int = 4) -> Path:
    """Twelve training and some test images; those of even number show a person, one in four has its mask from VOC."""
    names = [f"2008_{number:06}" for number in range(12 + test)]
    for number, name in enumerate(names):
        save(root / "JPEGImages" / f"{name}.jpg", np.full((*SIZE, 3), 10 * number, np.uint8))
        mask = box(15)
        mask[0] = 255
        place = "VOC12" if number % 4 == 0 else "pascal-context"
        save(root / "semseg" / place / f"{name}.png", mask)
        save(root / "sal_distill" / f"{name}.png", box(128) + 127 * (box() == 0).astype(np.uint8))
        save(root / "normals_distill" / f"{name}.png", np.stack([box(255), box(127), box(127)], -1))
        regions = box(284, np.uint16)  # a person, whose normals are to be trusted, on grass
        regions[regions == 0] = 187
        (root / "pascal-context" / "trainval").mkdir(parents=True, exist_ok=True)
        savemat(root / "pascal-context" / "trainval" / f"{name}.mat", {"LabelMap": regions})
        (root / "human_parts").mkdir(exist_ok=True)
        person = annotation(15, *head_and_arm()) if number % 2 == 0 else annotation(8)
        savemat(root / "human_parts" / f"{name}.mat", person)
    texts(root / "ImageSets" / "Context", train=names[:12], val=names[12:])
    return root


def nyud(root: Path, test: int = 4) -> Path:
    """Twelve training and some test images."""
    names = [f"img_{number:04}" for number in range(12 + test)]
    for number, name in enumerate(names):
        save(root / "images" / f"{name}.jpg", np.full((*SIZE, 3), 10 * number, np.uint8))
        save(root / "segmentation" / f"{name}.png", box(40))
        save(root / "depth" / f"{name}.npy", box(2.5, np.float32))
        save(root / "normals" / f"{name}.npy", np.stack([box(1, np.float32)] + 2 * [box(0, np.float32)], -1))
        save(root / "edge" / f"{name}.npy", box(1, np.float64))
    texts(root / "gt_sets", train=names[:12], val=names[12:])
    return root
