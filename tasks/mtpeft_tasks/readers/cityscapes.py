"""``cityscapes:PATH``: segmentation of streets in Cityscapes' layout.

``leftImg8bit/SPLIT/CITY/*_leftImg8bit.png`` with ``gtFine/SPLIT/CITY/*_gtFine_labelIds.png``. Of the 34 label ids, the
19 that count for evaluation are the classes, in the order of their train ids; all others are ignored. Labels of the
test split are withheld: ``?test=val`` tests on the validation split and holds validation images out of ``train``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mtpeft.api import SPLITS, DataError, Dataset, Split
from mtpeft_tasks.maps import IGNORED
from mtpeft_tasks.readers import files
from mtpeft_tasks.readers.pixels import Pair, Values, masked
from mtpeft_tasks.readers.splits import SplitReader

IMAGE, MASK = "_leftImg8bit.png", "_gtFine_labelIds.png"
EVALUATED = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
"""Names of the classes by label id; in this order their train ids are 0 to 18."""


@dataclass
class Cityscapes(SplitReader):
    """Segmentation of streets in Cityscapes' layout."""

    gives: ClassVar[tuple[str, ...]] = ("mask",)

    def read(self, path: str, split: Split, *, gives: str, seed: int) -> Dataset:
        """Every mask is decoded once to check its values.

        Raises:
            DataError: naming the file, for a missing or unreadable mask, one of another size than its image, a value
                that is no label id, or a split without any labelled pixel.
        """
        root = files.folder(path)
        images = files.folder(root / "leftImg8bit")
        splits = {name: self._pairs(root, name) for name in SPLITS if (images / name).is_dir()}
        ids = range(max(EVALUATED) + 1)
        ignored = frozenset({IGNORED, *ids} - EVALUATED.keys())
        values = Values(tuple(EVALUATED.get(id_, "") for id_ in ids), ignored, published=True)
        return masked(self, root, split, self.members(self.tested(splits), split, seed), values)

    def recognises(self, path: Path) -> bool:
        """The two folders ``leftImg8bit`` and ``gtFine``."""
        return (path / "leftImg8bit").is_dir() and (path / "gtFine").is_dir()

    def _pairs(self, root: Path, split: str) -> list[Pair]:
        pairs = []
        for image in sorted((root / "leftImg8bit" / split).glob(f"*/*{IMAGE}")):
            mask = root / "gtFine" / split / image.parent.name / (image.name.removesuffix(IMAGE) + MASK)
            if mask.is_file():
                pairs.append(Pair(image, mask))
            else:
                self.report(DataError(f'image "{image}" has no mask', hint=f'add "{mask}"'))
        return pairs
