"""``pascal-context:PATH``: PASCAL-Context as multi-task papers use it (``PASCAL_MT``: 4,998 and 5,105 images).

``JPEGImages/NAME.jpg`` with

- ``semseg/VOC12/NAME.png``, else ``semseg/pascal-context/NAME.png``: 21 classes, 255 ignored;
- ``human_parts/NAME.mat``: parts of persons, here 6 and the background (``?labels=parts``); images without any are left
  out, by ``ImageSets/Parts/{train,val}.txt`` where it is there;
- ``sal_distill/NAME.png``: salient from the middle grey;
- ``normals_distill/NAME.png``: components from -1 to 1 as grey values, where the object is of a class that the network
  which made them knew from indoor scenes;
- ``pascal-context/trainval/NAME.mat``: a region map, whose borders are the edges.

``ImageSets/Context/train.txt`` and ``ImageSets/Context/val.txt``, which is the test split. Each kind is a task: ``seg``
(twice), ``saliency``, ``normals`` and ``edges`` on the same path. Published edges are the thinned Laplacian of the map;
here a pixel is one where the region right of it or below it is another, which is a line of one pixel as well.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from mtpeft.api import DataError, Split
from mtpeft_tasks.maps import IGNORED, NAMES
from mtpeft_tasks.readers import files
from mtpeft_tasks.readers.image_sets import ImageSetReader, Member
from mtpeft_tasks.readers.pixels import read_mask

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
PARTS = {
    "head": ("head", "hair", "mouth", "nose", "lear", "rear", "leye", "reye", "lebrow", "rebrow"),
    "torso": ("torso", "neck"),
    "upper arm": ("luarm", "ruarm"),
    "lower arm": ("llarm", "rlarm", "lhand", "rhand"),
    "upper leg": ("luleg", "ruleg"),
    "lower leg": ("llleg", "rlleg", "lfoot", "rfoot"),
}
"""The six parts of papers, and those of the annotation that each joins."""

_PART_VALUE = {small: value for value, joined in enumerate(PARTS.values(), 1) for small in joined}
_PERSON = 15
_INDOOR = (
    3, 4, 6, 9, 10, 11, 13, 15, 17, 18, 22, 23, 29, 30, 33, 34, 36, 37, 38, 39, 41, 43, 46, 49, 50, 51, 53, 55, 56, 59,
    61, 62, 65, 66, 68, 69, 72, 73, 78, 83, 84, 85, 87, 88, 95, 96, 101, 104, 105, 107, 111, 113, 115, 122, 124, 135,
    141, 142, 143, 146, 150, 154, 157, 158, 159, 165, 172, 174, 181, 183, 184, 191, 193, 195, 197, 199, 202, 213, 215,
    216, 219, 220, 223, 225, 228, 230, 232, 233, 238, 239, 242, 243, 246, 250, 251, 252, 255, 260, 261, 263, 269, 272,
    273, 275, 281, 283, 284, 285, 286, 287, 288, 290, 291, 292, 293, 295, 304, 307, 309, 310, 314, 315, 319, 323, 329,
    330, 331, 336, 342, 345, 349, 350, 351, 352, 355, 357, 368, 370, 371, 374, 379, 380, 383, 384, 397, 401, 403, 405,
    407, 408, 411, 412, 413, 414, 417, 419, 421, 423, 427, 429, 430, 432, 440, 441, 442, 443, 444, 446, 454, 457,
)  # fmt: skip
"""The 170 of the 459 classes of the region map that NYUD-v2 has too: normals of others are not to be trusted."""


@dataclass
class PascalContext(ImageSetReader):
    """Semantic classes, human parts, saliency, surface normals and edges of everyday scenes.

    Attributes:
        labels: of masks: 21 ``semantic`` classes, or 6 ``parts`` of persons and the background.
    """

    gives: ClassVar[tuple[str, ...]] = ("mask", "saliency", "normals", "edges")
    images: ClassVar[str] = "JPEGImages"
    lists: ClassVar[dict[str, str]] = {"train": "ImageSets/Context/train.txt", "test": "ImageSets/Context/val.txt"}

    labels: Literal["semantic", "parts"] = "semantic"

    def names(self, gives: str) -> tuple[str, ...]:
        if gives != "mask":
            return NAMES[gives]
        return CLASSES if self.labels == "semantic" else ("background", *PARTS)

    def files(self, root: Path, name: str, gives: str) -> tuple[Path, ...]:
        regions = root / "pascal-context" / "trainval" / f"{name}.mat"
        if gives == "saliency":
            return (root / "sal_distill" / f"{name}.png",)
        if gives == "normals":
            return root / "normals_distill" / f"{name}.png", regions
        if gives == "edges":
            return (regions,)
        if self.labels == "parts":
            return (root / "human_parts" / f"{name}.mat",)
        places = [root / "semseg" / folder / f"{name}.png" for folder in ("VOC12", "pascal-context")]
        return (next((place for place in places if place.is_file()), places[-1]),)

    def members(self, root: Path, split: Split, gives: str, names: list[str]) -> list[str]:
        if gives != "mask" or self.labels != "parts":
            return names
        listed = _persons(root / "ImageSets" / "Parts" / ("val.txt" if split == "test" else "train.txt"))
        return [name for name in names if listed.get(name, True)]

    def load(self, item: Member, gives: str) -> np.ndarray:
        file = item.labels[0]
        if gives == "mask":
            return read_mask(file) if self.labels == "semantic" else _parts(file, files.image_size(item.image))
        if gives == "saliency":
            return (np.asarray(files.decode(file).convert("L")) > 127).astype(np.uint8)
        return borders(_regions(file)) if gives == "edges" else _normals(*item.labels)


def borders(regions: np.ndarray) -> np.ndarray:
    """1 where the region ``(H, W)`` right of a pixel or below it is another, else 0."""
    found = np.zeros(regions.shape, np.uint8)
    found[:, :-1] |= regions[:, :-1] != regions[:, 1:]
    found[:-1] |= regions[:-1] != regions[1:]
    return found


def _matlab(path: Path, variable: str) -> Any:
    from scipy.io import loadmat

    try:
        with files.opened(path) as file:
            return loadmat(file)[variable]
    except DataError:
        raise
    except KeyError:
        raise DataError(f'"{path}" has no variable {variable}', hint="expected a file of PASCAL_MT") from None
    except Exception as error:  # what a damaged file makes its parser raise is not documented
        raise DataError(f'"{path}" cannot be read: {error}', hint="expected a MATLAB file") from None


def _regions(path: Path) -> np.ndarray:
    regions = _matlab(path, "LabelMap")
    if regions.ndim != 2:
        raise DataError(f'"{path}": LabelMap has {regions.ndim} dimensions', hint="expected a number for each pixel")
    return regions


def _normals(path: Path, regions: Path) -> np.ndarray:
    """Vectors ``(3, H, W)``; zeros where the region is of another class than those to be trusted."""
    grey = np.asarray(files.decode(path).convert("RGB"), np.float32).transpose(2, 0, 1)
    trusted = np.isin(_regions(regions), _INDOOR)
    if trusted.shape != grey.shape[1:]:
        raise DataError(f'"{regions}" is not of the size of "{path}"', hint="both have that of their image")
    return np.where(trusted, grey / 127.5 - 1, np.float32(0))


def _parts(path: Path, size: tuple[int, int]) -> np.ndarray:
    """The parts of all persons in an image; 255 everywhere if there is none.

    The fields of the structures are found by their place: an annotation is (name, objects), an object (name, number of
    its class, mask, parts), a part (name, mask).
    """
    annotation, found = _matlab(path, "anno"), np.zeros(size, np.uint8)
    try:
        persons = [thing for thing in annotation[0, 0][1].ravel() if int(thing[1][0, 0]) == _PERSON]
        for part in (part for person in persons for part in person[3].ravel()):
            found[part[1].astype(bool)] = _PART_VALUE[str(part[0][0])]
    except (IndexError, KeyError, TypeError, ValueError) as error:
        message = f'"{path}" is no annotation of parts: {type(error).__name__} {error}'
        raise DataError(message, hint="expected a file of PASCAL-Part") from None
    return found if found.any() else np.full_like(found, IGNORED)


def _persons(listed: Path) -> dict[str, bool]:
    """Which images show a person, from the classes of each image's objects; nothing where there is no such list."""
    if not listed.is_file():
        return {}
    try:
        return {name: _PERSON in kinds for name, kinds in json.loads(files.read_bytes(listed)).items()}
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(f'"{listed}" cannot be read: {error}', hint="expected {NAME: [class, ...]} in JSON") from None
