"""Continual learning: one task after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat
from random import Random

from mtpeft.api import Schedule, TaskSize, full_quota, longest


@dataclass
class Sequential(Schedule):
    """One stage for each task in order, or the given ``stages``; tasks that share a stage are trained jointly in it."""

    def default_stages(self, names: tuple[str, ...]) -> list[tuple[str, ...]]:
        return [(name,) for name in names]

    def epoch(self, sizes: Mapping[str, TaskSize]) -> int:
        return longest(sizes)

    def quotas(self, sizes: Mapping[str, TaskSize], steps: int, random: Random) -> Iterator[dict[str, int]]:
        return repeat(full_quota(sizes))
