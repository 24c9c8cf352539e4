"""Sample order is keyed: it depends on what is named, on nothing else, and resumes from an integer."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtpeft.schedule import Cursor, key, sample_order, share


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
    whole = Cursor(3, "cls", count).take(position + 20)
    resumed = Cursor(3, "cls", count, position)
    assert resumed.take(20) == whole[position:]
    assert resumed.position == position + 20


def test_a_cursor_meets_every_sample_once_in_each_visit() -> None:
    draws = Cursor(0, "cls", 7).take(21)
    assert [visit for _, visit in draws] == [0] * 7 + [1] * 7 + [2] * 7
    for visit in range(3):
        assert sorted(index for index, v in draws if v == visit) == list(range(7))
        assert [index for index, v in draws if v == visit] == sample_order(0, "cls", visit, 7)


quotas = st.lists(st.integers(0, 7), min_size=1, max_size=6)


@given(count=st.integers(1, 9), position=st.integers(0, 40), quotas=quotas, world=st.integers(1, 5))
def test_ranks_together_draw_what_one_draws(count: int, position: int, quotas: list[int], world: int) -> None:
    one = Cursor(3, "cls", count, position)
    ranks = [Cursor(3, "cls", count, position, rank=rank, world=world) for rank in range(world)]
    for quota in quotas:
        shares = [cursor.take(quota) for cursor in ranks]
        assert [draw for share in shares for draw in share] == one.take(quota)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        assert {cursor.position for cursor in ranks} == {one.position}


@given(count=st.integers(1, 9), before=quotas, after=quotas, worlds=st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_a_run_resumes_with_another_number_of_ranks(
    count: int, before: list[int], after: list[int], worlds: tuple[int, int]
) -> None:
    one = Cursor(3, "cls", count)
    position, drawn = 0, []
    for quotas, world in zip((before, after), worlds, strict=True):
        ranks = [Cursor(3, "cls", count, position, rank=rank, world=world) for rank in range(world)]
        drawn += [draw for quota in quotas for cursor in ranks for draw in cursor.take(quota)]
        position = ranks[0].position
    assert drawn == one.take(sum(before) + sum(after))


@given(number=st.integers(0, 50), world=st.integers(1, 9))
def test_shares_are_disjoint_and_whole(number: int, world: int) -> None:
    shares = [share(number, rank, world) for rank in range(world)]
    assert [place for places in shares for place in places] == list(range(number))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(("rank", "world"), [(2, 2), (-1, 2), (0, 0)])
def test_a_rank_that_is_not_there_is_refused(rank: int, world: int) -> None:
    with pytest.raises(ValueError, match=f"no rank {rank} among {world}"):
        Cursor(0, "cls", 5, rank=rank, world=world)


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
