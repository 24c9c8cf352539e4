"""Data sets made of others: several splits as one, and some samples of many."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from random import Random
from typing import Any

from mtpeft.errors import DataError, UsageError
from mtpeft.keyed_random import generator
from mtpeft.task import Dataset, Sample, Task


class JoinedSplits(Dataset):
    """One after another.

    Raises:
        DataError: where they have other classes.
    """

    def __init__(self, parts: Sequence[Dataset]) -> None:
        self.parts, self.classes = list(parts), parts[0].classes
        self.left_out = tuple(error for part in parts for error in part.left_out)
        self.ends = list(accumulate(len(part) for part in parts))
        for part in parts:
            if part.classes != self.classes:
                raise DataError("the splits to train on have other classes", hint="leave train_on as it is")

    def __len__(self) -> int:
        return self.ends[-1]

    def _place(self, index: int) -> tuple[Dataset, int]:
        part = bisect_right(self.ends, index)
        return self.parts[part], index - (self.ends[part] - len(self.parts[part]))

    def __getitem__(self, index: int) -> Sample:
        part, own = self._place(index)
        return part[own]

    def origin(self, index: int) -> str:
        part, own = self._place(index)
        return part.origin(own)

    def shown(self, index: int) -> frozenset[str] | None:
        part, own = self._place(index)
        return part.shown(own)

    def manifest(self) -> dict[str, Any]:
        joined = [part.manifest() for part in self.parts]
        counts = [part["histogram"] for part in joined if "histogram" in part]
        total = {name: sum(count.get(name, 0) for count in counts) for name in self.classes}
        return {"count": len(self), "joined": joined, **({"histogram": total} if len(counts) == len(joined) else {})}


class Chosen(Dataset):
    """The samples of a data set at these indices, in their order."""

    def __init__(self, whole: Dataset, indices: Sequence[int]) -> None:
        self.whole, self.classes, self.left_out, self.indices = whole, whole.classes, whole.left_out, list(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.whole[self.indices[index]]

    def origin(self, index: int) -> str:
        return self.whole.origin(self.indices[index])

    def shown(self, index: int) -> frozenset[str] | None:
        return self.whole.shown(self.indices[index])

    def manifest(self) -> dict[str, Any]:
        return {"count": len(self), "drawn": self.indices, "from": self.whole.manifest()}


class Subsample(Chosen):
    """``count`` samples of a data set, in its order; which ones is decided by the seed alone."""

    def __init__(self, whole: Dataset, count: int, seed: int) -> None:
        super().__init__(whole, sorted(Random(seed).sample(range(len(whole)), count)))


class Dealt(Chosen):
    """Parts ``first`` to ``last`` of ``parts`` of a data set, in its order.

    The parts are disjoint, and together all of it; sizes differ by one at most. Which sample goes where is decided by
    the seed and the number of samples alone.
    """

    def __init__(self, whole: Dataset, first: int, last: int, parts: int, seed: int) -> None:
        count = len(whole)
        order = generator("part", seed, count).sample(range(count), count)
        chosen = range(first - 1, last)
        super().__init__(whole, sorted(index for place, index in enumerate(order) if place % parts in chosen))


def to_train_on(whole: Dataset, task: Task, seed: int) -> Dataset:
    """What a task trains on, of all that its data has for it: its ``part``, and of that so many ``samples``.

    Raises:
        UsageError: for a part that there is not, or that is empty.
    """
    if task.part is not None:
        first, last, parts = task.part[0], task.part[-2], task.part[-1]
        if not first <= last <= parts <= len(whole):
            message = f"part = {list(task.part)} is none of {len(whole)} samples"
            raise UsageError(message, hint="[k, n] is the k-th of n parts, k from 1 to n; [k, l, n] the k-th to l-th")
        whole = Dealt(whole, first, last, parts, seed)
    return Subsample(whole, task.samples, seed) if 0 < task.samples < len(whole) else whole
