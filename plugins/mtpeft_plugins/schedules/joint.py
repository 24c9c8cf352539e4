"""Joint training: one stage in which every batch carries samples of every task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat
from random import Random

from mtpeft.api import Schedule, TaskSize, full_quota, longest


@dataclass
class Joint(Schedule):
    """All tasks at once: every update takes ``batch_size`` samples of each. With ``stages``, so within each stage."""

    def default_stages(self, names: tuple[str, ...]) -> list[tuple[str, ...]]:
        return [names]

    def epoch(self, sizes: Mapping[str, TaskSize]) -> int:
        return longest(sizes)

    def quotas(self, sizes: Mapping[str, TaskSize], steps: int, random: Random) -> Iterator[dict[str, int]]:
        return repeat(full_quota(sizes))
