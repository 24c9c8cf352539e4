"""Small data sets of maps: masks, depth, normals, saliency, edges."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from support.samples_made import CLASSES, HEIGHT, WIDTH, Edit, Made, divided, picture, text


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


def make_cityscapes(root: Path, names: Sequence[str]) -> Made:
    """Label ids of four kinds, one of which is not evaluated."""
    values = np.full((HEIGHT, WIDTH), 7, np.uint8)
    values[4:], values[8:], values[12:] = 8, 11, 0
    images, masks = [], []
    for split, members in divided(names).items():
        for name in members:
            images.append(picture(root / "leftImg8bit" / split / "ulm" / f"{name}_leftImg8bit.png", len(images)))
            masks.append(root / "gtFine" / split / "ulm" / f"{name}_gtFine_labelIds.png")
            masks[-1].parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(masks[-1])
    return Made(f"cityscapes:{root}", root, ("mask",), tuple(images), tuple(masks))


def make_nyud(root: Path, names: Sequence[str]) -> Made:
    """Every kind of label; the validation split is held out."""
    lists, images, masks, arrays = listed(root, "gt_sets", names), [], [], []
    for name in names:
        images.append(picture(root / "images" / f"{name}.png", len(images)))
        masks.append(stored(root / "segmentation" / f"{name}.png", steps(0, 1, 2)))
        for folder, values in (("depth", steps(1, 2, 0)), ("edge", steps(0, 1, 0)), ("normals", steps(0, 1, 0))):
            arrays.append(root / folder / f"{name}.npy")
            arrays[-1].parent.mkdir(exist_ok=True)
            np.save(arrays[-1], np.stack([values] * 3, -1) if folder == "normals" else values.astype(np.float32))
    gives = ("mask", "depth", "normals", "edges")
    return Made(f"nyud:{root}", root, gives, tuple(images), tuple(masks), lists, edits=outside(lists[0], names[0]))


def make_pascal_context(root: Path, names: Sequence[str]) -> Made:
    """Semantic classes and saliency, which no other library is needed for."""
    lists, images, masks = listed(root, "ImageSets/Context", names), [], []
    for name in names:
        images.append(picture(root / "JPEGImages" / f"{name}.png", len(images)))
        masks.append(stored(root / "semseg/VOC12" / f"{name}.png", steps(0, 15, 255)))
        stored(root / "sal_distill" / f"{name}.png", steps(0, 255, 0))
    edits = outside(lists[0], names[0])
    return Made(f"pascal-context:{root}", root, ("mask", "saliency"), tuple(images), tuple(masks), lists, edits=edits)


def steps(*values: int) -> np.ndarray:
    """A map of as many stripes."""
    found = np.full((HEIGHT, WIDTH), values[0], np.uint8)
    for number, value in enumerate(values[1:], 1):
        found[4 * number :] = value
    return found


def stored(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def listed(root: Path, folder: str, names: Sequence[str]) -> tuple[Path, ...]:
    """Lists of training and test images, as train and val."""
    splits = divided(names)
    members = {"train": [*splits["train"], *splits["val"]], "val": splits["test"]}
    return tuple(text(root / folder / f"{name}.txt", "\n".join(m) + "\n") for name, m in members.items())


def outside(file: Path, name: str) -> tuple[Edit, ...]:
    """What a list of names must refuse; what is missing is named by the image."""
    new = {"outside": "../../outside", "null byte": "a\0b", "long": "x" * 5000}
    return tuple(Edit(what, file, f"{name}\n", f"{text}\n", named=text[:9]) for what, text in new.items())
