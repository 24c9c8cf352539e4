"""Data sets made of others: several splits as one, and some samples of many."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from random import Random
from typing import Any

from mtpeft.errors import DataError
from mtpeft.task import Dataset, Sample


class JoinedSplits(Dataset):
    """One after another.

    Raises:
        DataError: where they have other classes.
    """

    def __init__(self, parts: Sequence[Dataset]) -> None:
        self.parts, self.classes = list(parts), parts[0].classes
        self.ends = list(accumulate(len(part) for part in parts))
        for part in parts:
            if part.classes != self.classes:
                raise DataError("the splits to train on have other classes", hint="leave train_on as it is")

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> Sample:
        part = bisect_right(self.ends, index)
        return self.parts[part][index - (self.ends[part] - len(self.parts[part]))]

    def manifest(self) -> dict[str, Any]:
        return {"count": len(self), "joined": [part.manifest() for part in self.parts]}


class Subsample(Dataset):
    """``count`` samples of a data set, in its order; which ones is decided by the seed alone."""

    def __init__(self, whole: Dataset, count: int, seed: int) -> None:
        self.whole, self.classes = whole, whole.classes
        self.indices = sorted(Random(seed).sample(range(len(whole)), count))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.whole[self.indices[index]]

    def manifest(self) -> dict[str, Any]:
        return {"count": len(self), "drawn": self.indices, "from": self.whole.manifest()}
