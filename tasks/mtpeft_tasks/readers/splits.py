"""How layouts name their splits, and which of them is tested on."""

from __future__ import annotations

from abc import ABC
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from mtpeft.api import DataError, Reader, Split
from mtpeft_tasks.readers import files

_WORDS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training", "trainset", "trainingset"),
    "val": ("val", "valid", "validation", "dev", "valset", "validationset"),
    "test": ("test", "testing", "eval", "evaluation", "testset", "testingset"),
}
FOLDERS = {
    split: tuple(form(word) for form in (str.lower, str.capitalize, str.upper) for word in words)
    for split, words in _WORDS.items()
}
"""How folders and files of a split are called, the usual names first."""
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words}
Item = TypeVar("Item", bound=Hashable)
T = TypeVar("T")


def split_of(name: str) -> str | None:
    """The split that a name says, in any case; None for other names.

    >>> split_of("Validation"), split_of("photos")
    ('val', None)
    """
    return _SPLIT_OF.get(name.lower())


def split_folders(root: Path) -> dict[str, Path]:
    """The folders in ``root`` that are named as splits.

    Raises:
        DataError: where two say the same one.
    """
    return by_split(child for child in root.iterdir() if child.is_dir())


def split_files(root: Path, suffix: str) -> dict[str, Path]:
    """The files in ``root`` that are named as splits and end in ``suffix``.

    Raises:
        DataError: where two say the same one.
    """
    return by_split(child for child in root.glob(f"*{suffix}") if child.is_file()) if root.is_dir() else {}


def by_split(places: Iterable[Path]) -> dict[str, Path]:
    """Those of the files and folders that are named as splits, by split.

    Raises:
        DataError: where two say the same one.
    """
    found: dict[str, Path] = {}
    for place in sorted(places):
        split = split_of(place.stem if place.is_file() else place.name)
        if split is not None and (other := found.setdefault(split, place)) is not place:
            hint = "join them, or rename the one that is not meant"
            raise DataError(f'"{other}" and "{place}" are both a split "{split}"', hint=hint)
    return {split: found[split] for split in _WORDS if split in found}


@dataclass
class SplitReader(Reader, ABC):
    """A reader of data that may have splits of its own.

    Attributes:
        test: the split to test on; ``val`` where a published protocol reports on it, or the test labels are withheld.
            Validation samples are then held out of the training data.
    """

    test: Literal["test", "val"] = "test"

    def tested(self, splits: Mapping[str, T]) -> dict[str, T]:
        """The splits that the data has, under the names that they are used by.

        Raises:
            DataError: where the split to test on is missing.
        """
        if self.test == "test":
            return dict(splits)
        if "val" not in splits:
            raise DataError("the data has no validation split to test on", hint="drop ?test=val from the data's path")
        return {name: found for name, found in splits.items() if name == "train"} | {"test": splits["val"]}

    def members(self, splits: Mapping[str, Sequence[Item]], split: Split, seed: int) -> list[Item]:
        """What is in a split; held out of ``train`` (20 % for test, 10 % for val) where there is none.

        Raises:
            DataError: where the data has neither the split nor anything to hold it out of.
        """
        filled = files.fill_splits(splits, dict.fromkeys(splits.get("train", ()), ""), seed)
        if split not in filled:
            hint = f"it has: {', '.join(splits)}; what is missing is held out of the training data"
            raise DataError(f'the data has no split "{split}" and no training data', hint=hint)
        return filled[split]
