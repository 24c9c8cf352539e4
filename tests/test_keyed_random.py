"""Sample order is keyed: it depends on what is named, on nothing else, and resumes from an integer."""

from __future__ import annotations

import random
import subprocess
import sys
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtpeft.schedule import Cursor, key, sample_order


@given(seed=st.integers(), task=st.text(max_size=5), epoch=st.integers(0, 99), count=st.integers(1, 60))
def test_an_order_is_a_permutation(seed: int, task: str, epoch: int, count: int) -> None:
    order = sample_order(seed, task, epoch, count)
    assert sorted(order) == list(range(count))
    assert order == sample_order(seed, task, epoch, count)


def test_orders_differ_by_seed_task_and_visit() -> None:
    orders = [sample_order(*what, 50) for what in [(0, "cls", 0), (1, "cls", 0), (0, "det", 0), (0, "cls", 1)]]
    assert len({tuple(order) for order in orders}) == 4


@given(count=st.integers(1, 9), position=st.integers(0, 40))
def test_a_cursor_resumes_from_its_position_alone(count: int, position: int) -> None:
    whole = list(islice(Cursor(3, "cls", count), position + 20))
    resumed = Cursor(3, "cls", count, position)
    assert resumed.take(20) == whole[position:]
    assert resumed.position == position + 20


def test_a_cursor_meets_every_sample_once_in_each_visit() -> None:
    draws = Cursor(0, "cls", 7).take(21)
    assert [visit for _, visit in draws] == [0] * 7 + [1] * 7 + [2] * 7
    for visit in range(3):
        assert sorted(index for index, v in draws if v == visit) == list(range(7))
        assert [index for index, v in draws if v == visit] == sample_order(0, "cls", visit, 7)


def test_a_cursor_over_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="'cls' has 0"):
        Cursor(0, "cls", 0)


def test_keys_fit_63_bits_and_tell_everything_apart() -> None:
    keys = {key(s, t, i, v) for s in (0, 1) for t in ("a", "b", "a1") for i in range(12) for v in range(12)}
    assert len(keys) == 2 * 3 * 12 * 12
    assert all(0 <= k < 2**63 for k in keys)
    assert max(keys) > 2**61


def test_keys_and_orders_are_the_same_in_every_process() -> None:
    code = "from mtpeft.schedule import key, sample_order; print(key(1, 'det', 2, 3), sample_order(1, 'det', 2, 9))"
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": s}, capture_output=True, text=True, check=True
        )
        for s in "12"
    ]
    assert runs[0].stdout == runs[1].stdout == f"{key(1, 'det', 2, 3)} {sample_order(1, 'det', 2, 9)}\n"


def test_no_global_random_state_is_touched() -> None:
    random.seed(5)
    before = random.getstate()
    Cursor(0, "cls", 5).take(9)
    assert random.getstate() == before
