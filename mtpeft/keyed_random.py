"""Keyed draws: which sample comes next, and the seed of its augmentation. No global random state is read or written."""

from __future__ import annotations

from hashlib import sha256
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


def share(number: int, rank: int, world: int) -> range:
    """Which of ``number`` draws are those of ``rank`` among ``world``: contiguous, and even to within one.

    The shares of all ranks are disjoint, and in the order of ranks they are ``range(number)``.

    >>> [share(5, rank, 2) for rank in range(2)]
    [range(0, 2), range(2, 5)]
    """
    return range(number * rank // world, number * (rank + 1) // world)


class Cursor:
    """A task's endless stream of ``(index, visit)``: every sample once in each visit, in a new order each time.

    Of several ranks, each holds a cursor of its own, and asks it for the same numbers: every rank gets its `share` of
    the draws, and all of them together are what one rank draws, in order. A position counts the draws of all ranks, so
    that a run can be resumed with another number of them.

    Args:
        seed: the data seed.
        task: the task's name.
        count: number of samples, at least 1.
        position: how many draws were made already, by all ranks together; all that is needed to resume.
        rank: whose draws to give, from 0.
        world: number of ranks.
    """

    def __init__(self, seed: int, task: str, count: int, position: int = 0, *, rank: int = 0, world: int = 1) -> None:
        if count < 1:
            raise ValueError(f"a cursor needs at least one sample, and {task!r} has {count}")
        if not 0 <= rank < world:
            raise ValueError(f"there is no rank {rank} among {world}")
        self.rank, self.world = rank, world
        self.seed, self.task, self.count, self.position = seed, task, count, position
        self._visit, self._order = -1, []  # type: int, list[int]

    def take(self, number: int) -> list[tuple[int, int]]:
        """This rank's share of the next ``number`` draws, which all ranks make together."""
        start, self.position = self.position, self.position + number
        return [self._draw(start + place) for place in share(number, self.rank, self.world)]

    def _draw(self, position: int) -> tuple[int, int]:
        visit, place = divmod(position, self.count)
        if visit != self._visit:
            self._visit, self._order = visit, sample_order(self.seed, self.task, visit, self.count)
        return self._order[place], visit


def _hash(*what: int | str) -> int:
    return int.from_bytes(sha256(repr(what).encode()).digest()[:8], "big") >> 1
