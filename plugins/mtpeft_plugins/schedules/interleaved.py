"""Interleaved training: one stage in which a sampler says whose batch comes next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, repeat
from random import Random
from typing import Literal

from mtpeft.api import Count, Positive, Schedule, TaskSize, UsageError, full_quota, longest

Sampler = Literal["proportional", "temperature", "annealed", "capped", "uniform", "round-robin", "mixed"]


@dataclass
class Interleaved(Schedule):
    """Each update trains one task, drawn with probability p from the task sizes n (training samples).

    Attributes:
        sampler: ``proportional`` p ~ n; ``temperature`` p ~ n^(1/temperature); ``annealed`` p ~ n^a with a falling
            from 1 to 0.2 over the epochs (over the updates where ``steps`` is given; Stickland and Murray, ICML 2019);
            ``capped`` p ~ min(n, cap) (T5, JMLR 2020); ``uniform``; ``round-robin``: in turn, no draw; ``mixed``: no
            draw either, every update takes a batch of every task.
        temperature: of the sampler of that name; 2 unless given.
        cap: of the sampler ``capped``; 4096 unless given.
    """

    sampler: Sampler = "proportional"
    temperature: Positive | None = None
    cap: Count | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for setting, owner in (("temperature", "temperature"), ("cap", "capped")):
            value = getattr(self, setting)
            if value is not None and self.sampler != owner:
                message = f'{setting} = {value} has no effect with sampler = "{self.sampler}"'
                raise UsageError(message, hint=f'set sampler = "{owner}", or leave {setting} out')

    def default_stages(self, names: tuple[str, ...]) -> list[tuple[str, ...]]:
        return [names]

    def epoch(self, sizes: Mapping[str, TaskSize]) -> int:
        return longest(sizes) if self.sampler == "mixed" else sum(size.batches for size in sizes.values())

    def quotas(self, sizes: Mapping[str, TaskSize], steps: int, random: Random) -> Iterator[dict[str, int]]:
        if self.sampler == "mixed":
            return repeat(full_quota(sizes))
        names = cycle(sizes) if self.sampler == "round-robin" else self._draws(sizes, steps, random)
        return ({name: sizes[name].batch_size} for name in names)

    def shares(self, counts: Sequence[int], progress: float = 0.0) -> list[float]:
        """Each task's probability from the task sizes; ``progress`` through the stage, 0 to 1, is for annealing."""
        exponent = {"proportional": 1.0, "annealed": 1 - 0.8 * progress, "capped": 1.0}.get(self.sampler, 0.0)
        if self.sampler == "temperature":
            exponent = 1 / (self.temperature or 2.0)
        limit = (self.cap or 4096) if self.sampler == "capped" else max(counts)
        weights = [min(count, limit) ** exponent for count in counts]
        return [weight / sum(weights) for weight in weights]

    def _draws(self, sizes: Mapping[str, TaskSize], steps: int, random: Random) -> Iterator[str]:
        names, counts = list(sizes), [size.count for size in sizes.values()]
        length = 1 if self.steps is not None else self.epoch(sizes)
        last = max(steps // length - 1, 1)
        for step in range(steps):
            yield random.choices(names, self.shares(counts, step // length / last))[0]
