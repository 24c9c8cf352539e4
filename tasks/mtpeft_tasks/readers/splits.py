"""How layouts name their splits, and which of them is tested on."""

from __future__ import annotations

from abc import ABC
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from mtpeft.api import DataError, Reader, Split
from mtpeft_tasks.readers import files

FOLDERS = {
    "train": ("train", "training", "trainset", "trainingset"),
    "val": ("val", "valid", "validation", "valset", "validationset"),
    "test": ("test", "testing", "testset"),
}
"""How folders and files of a split are called."""
Item = TypeVar("Item", bound=Hashable)
T = TypeVar("T")


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
