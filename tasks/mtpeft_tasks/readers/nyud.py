"""``nyud:PATH``: NYUD-v2 as multi-task papers use it (``NYUD_MT``: 795 training and 654 test images of 560 x 425).

``images/NAME.jpg`` with ``segmentation/NAME.png`` (0 is no class, then 40), ``depth/NAME.npy`` (metres, 0 where there
is none), ``normals/NAME.npy`` and ``edge/NAME.npy``; ``gt_sets/train.txt`` and ``gt_sets/val.txt``, which is the test
split. Each kind is a task: ``seg``, ``depth``, ``normals`` and ``edges`` on the same path.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from mtpeft_tasks.maps import IGNORED, NAMES
from mtpeft_tasks.readers.image_sets import ImageSetReader, Member, load_array
from mtpeft_tasks.readers.pixels import read_mask

CLASSES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter",
    "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes", "ceiling", "books",
    "refridgerator", "television", "paper", "towel", "shower curtain", "box", "whiteboard", "person", "night stand",
    "toilet", "sink", "lamp", "bathtub", "bag", "otherstructure", "otherfurniture", "otherprop",
)  # fmt: skip
_PLACES = {
    "mask": ("segmentation", "png"), "depth": ("depth", "npy"), "normals": ("normals", "npy"), "edges": ("edge", "npy")
}  # fmt: skip


@dataclass
class Nyud(ImageSetReader):
    """Semantic classes, depth, surface normals and edges of indoor scenes."""

    gives: ClassVar[tuple[str, ...]] = ("mask", "depth", "normals", "edges")
    images: ClassVar[str] = "images"
    lists: ClassVar[dict[str, str]] = {"train": "gt_sets/train.txt", "test": "gt_sets/val.txt"}

    def names(self, gives: str) -> tuple[str, ...]:
        return CLASSES if gives == "mask" else NAMES[gives]

    def files(self, root: Path, name: str, gives: str) -> tuple[Path, ...]:
        place, suffix = _PLACES[gives]
        return (root / place / f"{name}.{suffix}",)

    def load(self, item: Member, gives: str) -> np.ndarray:
        [file] = item.labels
        if gives == "mask":
            return read_mask(file) - np.uint8(1)  # 0 becomes 255
        if gives == "normals":
            return np.ascontiguousarray(load_array(file, "HW3").transpose(2, 0, 1))
        values = load_array(file, "HW")
        return values if gives == "depth" else np.where(values == IGNORED, IGNORED, values > 0).astype(np.uint8)
