"""The samplers hold the shares of their formulas."""

from __future__ import annotations

from collections import Counter
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtpeft.errors import UsageError
from mtpeft.schedule import Batch, TaskSize
from mtpeft.settings import build
from mtpeft_plugins.schedules.interleaved import Interleaved, Sampler

COUNTS = [50_000, 5_000, 1_000]


@pytest.mark.parametrize(
    ("settings", "progress", "shares"),
    [
        ({"sampler": "proportional"}, 0, [0.89, 0.09, 0.02]),
        ({"sampler": "temperature"}, 0, [0.69, 0.22, 0.10]),
        ({"sampler": "temperature", "temperature": 5.0}, 0, [0.48, 0.30, 0.22]),
        ({"sampler": "annealed"}, 0, [0.89, 0.09, 0.02]),
        ({"sampler": "annealed"}, 1, [0.48, 0.30, 0.22]),
        ({"sampler": "capped"}, 0, [0.45, 0.45, 0.11]),
        ({"sampler": "capped", "cap": 1}, 0, [0.33, 0.33, 0.33]),
        ({"sampler": "uniform"}, 0, [0.33, 0.33, 0.33]),
    ],
)
def test_published_shares(settings: dict, progress: float, shares: list[float]) -> None:
    assert Interleaved(**settings).shares(COUNTS, progress) == pytest.approx(shares, abs=0.0051)


@given(st.sampled_from(get_args(Sampler)), st.lists(st.integers(1, 10**7), min_size=1, max_size=9), st.floats(0, 1))
def test_shares_are_a_distribution_that_never_starves_a_task(sampler: str, counts: list[int], progress: float) -> None:
    shares = Interleaved(sampler=sampler).shares(counts, progress)
    assert sum(shares) == pytest.approx(1)
    assert min(shares) > 0
    assert [share for _, share in sorted(zip(counts, shares, strict=True))] == sorted(shares)


def drawn(schedule: Interleaved, tasks: dict[str, TaskSize], seed: int = 0) -> list[str]:
    batches = [e for e in schedule.events(tasks, seed) if isinstance(e, Batch)]
    assert all(len(b.quota) == 1 for b in batches)
    return [next(iter(b.quota)) for b in batches]


def test_draws_follow_the_shares() -> None:
    tasks = {"a": TaskSize(800, 8), "b": TaskSize(200, 8)}
    count = Counter(drawn(Interleaved(steps=4000), tasks))
    assert count["a"] / 4000 == pytest.approx(0.8, abs=0.03)


def test_annealing_runs_over_epochs_or_updates() -> None:
    tasks = {"large": TaskSize(1600, 16), "small": TaskSize(16, 16)}  # shares 100:1 at first, 2.5:1 at last
    for settings in ({"epochs": 20}, {"steps": 2020}):
        names = drawn(Interleaved(sampler="annealed", **settings), tasks)
        fifth = len(names) // 5
        assert Counter(names[:fifth])["small"] / fifth < 0.05
        assert 0.15 < Counter(names[-fifth:])["small"] / fifth < 0.35


def test_one_epoch_of_annealing_is_proportional() -> None:
    tasks = {"a": TaskSize(800, 8), "b": TaskSize(200, 8)}
    annealed = Interleaved(sampler="annealed", epochs=1)
    assert drawn(annealed, tasks) == drawn(Interleaved(epochs=1), tasks)


def test_round_robin_takes_turns_in_order() -> None:
    tasks = {"b": TaskSize(9, 2), "a": TaskSize(900, 3)}
    assert drawn(Interleaved(sampler="round-robin", steps=5), tasks) == ["b", "a", "b", "a", "b"]


def test_mixed_takes_a_batch_of_every_task() -> None:
    tasks = {"b": TaskSize(9, 2), "a": TaskSize(900, 3)}
    batches = [e.quota for e in Interleaved(sampler="mixed", steps=2).events(tasks, 0) if isinstance(e, Batch)]
    assert batches == [{"b": 2, "a": 3}] * 2


def test_seeds_and_stages_draw_differently() -> None:
    tasks = {name: TaskSize(100, 4) for name in "abcd"}
    one = drawn(Interleaved(steps=40), tasks, seed=0)
    assert one != drawn(Interleaved(steps=40), tasks, seed=1)
    staged = drawn(Interleaved(steps=40, stages=[["a", "b"], ["c", "d"]]), tasks)
    assert [ord(n) - ord("a") for n in staged[:40]] != [ord(n) - ord("c") for n in staged[40:]]


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({"sampler": "proportionel"}, 'schedule.sampler = "proportionel" does not fit', 'did you mean "proportional"?'),
        ({"temperature": 2.0}, 'temperature = 2.0 has no effect with sampler = "proportional"', '"temperature"'),
        ({"sampler": "uniform", "cap": 9}, "cap = 9 has no effect", 'sampler = "capped"'),
        ({"sampler": "temperature", "temperature": 0.0}, "schedule.temperature = 0.0 does not fit", "a number above 0"),
        ({"sampler": "capped", "cap": 0}, "schedule.cap = 0 does not fit", "a whole number of at least 1"),
    ],
)
def test_sampler_settings_that_cannot_be_are_refused(settings: dict, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as error:
        build(Interleaved, settings, "schedule")
    assert message in error.value.message
    assert hint in error.value.hint
