"""Replay: a fair sample of everything trained on is kept by key, and drawn from in later updates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

import torch
from torch import Tensor

from mtpeft.api import Context, Count, Key, Method, Part, Positive, Routine, Site, Targets, TaskBatch, Whole


@dataclass
class ReplayingMethod(Method):
    """The settings of a method without parts that keeps samples.

    Attributes:
        samples: kept at most; 0 for none.
        megabytes: that samples (as if their images were kept) and what is kept beside them may take; None for no limit.
        batch: samples drawn for each batch.
        balanced: as many of each task, instead of each in proportion to its data.
    """

    samples: Whole = 200
    megabytes: Positive | None = None
    batch: Count = 32
    balanced: bool = False

    def part(self, site: Site) -> Part | None:
        return None


M = TypeVar("M", bound=ReplayingMethod)


@dataclass(eq=False)
class Rehearsal(Routine[M]):
    """A reservoir: each time a sample is trained on it gets a random priority, and the smallest priorities are kept.

    A priority comes from the seed, the stage, the step and the key alone, and is kept beside the sample: a resumed
    training has the same memory, and draws the same from it.
    """

    priorities: dict[Key, float] = field(default_factory=dict)
    turn: int = 0

    def __post_init__(self) -> None:
        if self.method.megabytes is not None:
            self.memory.budget = int(1e6 * self.method.megabytes)

    def trains(self, context: Context) -> Sequence[str]:
        return tuple(dict.fromkeys(task for task, _ in self.memory if task not in context.tasks))

    def begin_update(self, context: Context) -> bool:
        self.turn = 0
        return False

    def extra(self, batch: TaskBatch, row: int) -> dict[str, Tensor]:
        """What is kept beside a sample."""
        return {}

    def drawn(self, context: Context, what: str, tasks: Sequence[str] | None = None) -> list[Key]:
        """Keys for the batch under way; another ``what`` draws others."""
        pool = [key for key in self.memory if tasks is None or key[0] in tasks]
        return self._random(context, f"{what} {self.turn}").sample(pool, min(self.method.batch, len(pool)))

    def loaded(self, context: Context, keys: Sequence[Key], what: str) -> Iterator[tuple[list[Key], Tensor, Targets]]:
        """``(keys, images, targets)`` of each task, augmented anew."""
        visit = self._random(context, f"visit {what} {self.turn}").getrandbits(31)
        for task, images, targets in context.load(keys, visit) if keys else ():
            yield [key for key in keys if key[0] == task], images, targets

    def loss(self, context: Context, what: str, tasks: Sequence[str] | None = None) -> Tensor | None:
        """The mean loss of samples from memory; None where there are none."""
        terms, count = [], 0
        for keys, images, targets in self.loaded(context, self.drawn(context, what, tasks), what):
            terms.append(len(keys) * context.loss(keys[0][0], images, targets))
            count += len(keys)
        return torch.stack(terms).sum() / count if terms else None

    def keep(self, context: Context) -> None:
        """Offer the batch under way to the memory; call it once for each batch, after drawing."""
        for batch in context.batch if self.method.samples else ():
            for row, key in enumerate(batch.keys):
                self._offer(key, self._random(context, f"{self.turn} {key}").random(), self.extra(batch, row))
        self.turn += 1

    def restore(self, state: dict[str, Tensor]) -> None:
        self.priorities = {}

    def _offer(self, key: Key, priority: float, extra: dict[str, Tensor]) -> None:
        """Keep it if its priority is smaller than its own before, or than the largest among its rivals."""
        if key in self.memory and self._priority(key) <= priority:
            return
        while key not in self.memory and self._full(extra):
            standing = {other: self._priority(other) for other in self.memory} | {key: priority}
            worst = max(self._rivals(list(standing), key), key=standing.__getitem__)
            if worst == key:
                return
            self.memory.remove(worst)
            del self.priorities[worst]
        self.memory.add(key, priority=torch.tensor(priority, dtype=torch.float64), **extra)
        self.priorities[key] = priority

    def _full(self, extra: dict[str, Tensor]) -> bool:
        """Whether another one goes first; an empty memory is never full, and says so where one sample is too much."""
        room = self.memory.room(priority=torch.zeros((), dtype=torch.float64), **extra)
        return len(self.memory) > 0 and (len(self.memory) >= self.method.samples or room == 0)

    def _rivals(self, keys: list[Key], key: Key) -> list[Key]:
        """Of which samples, ``key`` among them, one goes: all, or those of the task that has most."""
        if not self.method.balanced:
            return keys
        counts = Counter(task for task, _ in keys)
        most = max(counts, key=lambda task: (counts[task], task == key[0], task))
        return [other for other in keys if other[0] == most]

    def _priority(self, key: Key) -> float:
        if key not in self.priorities:
            self.priorities[key] = float(self.memory.extra(key)["priority"])
        return self.priorities[key]

    def _random(self, context: Context, what: str) -> Random:
        return Random(f"replay {context.seed} {context.stage} {context.step} {what}")
