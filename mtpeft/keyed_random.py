"""Keyed draws: which sample comes next, and the seed of its augmentation. No global random state is read or written."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from itertools import islice
from random import Random


def key(seed: int, task: str, index: int, visit: int) -> int:
    """A 63-bit integer that seeds what is random about one visit to one sample; the same on every machine."""
    return _hash("augment", seed, task, index, visit)


def generator(*what: int | str) -> Random:
    """A generator of its own for what the arguments name."""
    return Random(_hash(*what))


def sample_order(seed: int, task: str, epoch: int, count: int) -> list[int]:
    """The order in which visit number ``epoch`` meets a task's ``count`` samples: a permutation of ``range(count)``."""
    order = list(range(count))
    generator("order", seed, task, epoch).shuffle(order)
    return order


class Cursor:
    """A task's endless stream of ``(index, visit)``: every sample once in each visit, in a new order each time.

    Args:
        seed: the data seed.
        task: the task's name.
        count: number of samples, at least 1.
        position: how many draws were made already; all that is needed to resume.
    """

    def __init__(self, seed: int, task: str, count: int, position: int = 0) -> None:
        if count < 1:
            raise ValueError(f"a cursor needs at least one sample, and {task!r} has {count}")
        self.seed, self.task, self.count, self.position = seed, task, count, position
        self._visit, self._order = -1, []  # type: int, list[int]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return self

    def __next__(self) -> tuple[int, int]:
        visit, place = divmod(self.position, self.count)
        if visit != self._visit:
            self._visit, self._order = visit, sample_order(self.seed, self.task, visit, self.count)
        self.position += 1
        return self._order[place], visit

    def take(self, number: int) -> list[tuple[int, int]]:
        """The next ``number`` draws."""
        return list(islice(self, number))


def _hash(*what: int | str) -> int:
    return int.from_bytes(sha256(repr(what).encode()).digest()[:8], "big") >> 1
