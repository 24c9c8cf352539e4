"""A score follows from its counts by a closed form; what contradicts them, or is no count, is refused by field."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtpeft.errors import DataError
from mtpeft.score import Form, Score

CORRECT = Form("ratio", ("correct", "total"), 100)
IOU = Form("ratio", ("intersections", "unions", "pixels"), 100)
RMSE = Form("root_ratio", ("squared", "pixels"))
BEST_F = Form("best_f", ("right", "predicted", "found", "actual"), 100, 0.3)
MEAN = Form("mean", ("per_class",))


@pytest.mark.parametrize(
    ("form", "detail", "value"),
    [
        (CORRECT, {"correct": 45, "total": 50}, 90),
        (CORRECT, {"correct": 0, "total": 0}, None),
        (IOU, {"intersections": [1, 0, 3], "unions": [2, 4, 3], "pixels": [2, 0, 3]}, 75),
        (IOU, {"intersections": [0], "unions": [4], "pixels": [0]}, None),
        (RMSE, {"squared": 8.0, "pixels": 2}, 2),
        (RMSE, {"squared": 0, "pixels": 0}, None),
        (BEST_F, {"right": [4, 2], "predicted": [8, 2], "found": [4, 2], "actual": 4}, 100 * 1.3 * 0.5 / (0.3 + 0.5)),
        (BEST_F, {"right": [0], "predicted": [0], "found": [0], "actual": 4}, 0),
        (BEST_F, {"right": [0], "predicted": [8], "found": [0], "actual": 0}, None),
        (MEAN, {"per_class": {"a": 20.0, "b": None, "c": 40.0}}, 30),
        (MEAN, {"per_class": {"a": None}}, None),
        (MEAN, {"per_class": {}}, None),
    ],
)
def test_closed_forms(form: Form, detail: dict[str, Any], value: float | None) -> None:
    score = Score.of(form, 3, detail)
    assert score.value == (None if value is None else pytest.approx(value))
    score.check()


@given(right=st.integers(0, 99), predicted=st.integers(1, 99), found=st.integers(0, 99), actual=st.integers(1, 99))
def test_the_f_measure_is_the_weighted_harmonic_mean(right: int, predicted: int, found: int, actual: int) -> None:
    detail = {"right": right, "predicted": predicted, "found": found, "actual": actual}
    precision, recall = right / predicted, found / actual
    expected = 100 / (1 / 1.3 / precision + 0.3 / 1.3 / recall) if right and found else 0
    assert BEST_F.value(detail) == pytest.approx(expected)


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=9))
def test_the_mean_of_ratios_leaves_empty_ones_out(pairs: list[tuple[int, int]]) -> None:
    detail = {"top": [top for top, _ in pairs], "bottom": [bottom for _, bottom in pairs]}
    defined = [top / bottom for top, bottom in pairs if bottom]
    expected = pytest.approx(sum(defined) / len(defined)) if defined else None
    assert Form("ratio", ("top", "bottom")).value(detail) == expected
    root = Form("root_ratio", ("top", "bottom"), 2).value(detail)
    assert root == (pytest.approx(2 * sqrt(sum(defined) / len(defined))) if defined else None)


@pytest.mark.parametrize(
    ("detail", "message"),
    [
        ({"correct": 1}, "has no detail.total"),
        ({"correct": -1, "total": 2}, "has a detail.correct that holds -1"),
        ({"correct": True, "total": 2}, "has a detail.correct that holds what is no number"),
        ({"correct": "1", "total": 2}, "has a detail.correct that holds what is no number"),
        ({"correct": None, "total": 2}, "has a detail.correct that holds what is no number"),
        ({"correct": float("nan"), "total": 2}, "has a number in its detail"),
        ({"correct": 1, "total": 10**400}, "has a number in its detail"),
        ({"correct": 1, "total": 2, "other": [[{"x": float("inf")}]]}, "has a number in its detail"),
        ({"correct": [1, 2], "total": [1, 2, 3]}, "has 2 entries in detail.correct, and 3 in others"),
        ({"correct": 1, "total": 4}, "is 50.0, and its counts give 25.0"),
        ({"correct": 0, "total": 0}, "is 50.0, and its counts give None"),
    ],
)
def test_counts_that_cannot_be_are_refused(detail: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as error:
        Score(50.0, 2, detail, CORRECT).check()
    assert message in error.value.message
    assert error.value.hint


def test_a_form_of_the_wrong_number_of_fields_is_refused() -> None:
    with pytest.raises(DataError, match='has a form "ratio" of 1 fields'):
        Form("ratio", ("correct",)).value({"correct": 1})


def test_the_task_aware_score_is_held_to_its_counts_too() -> None:
    aware = Score.of(CORRECT, 2, {"correct": 2, "total": 2})
    Score.of(CORRECT, 2, {"correct": 1, "total": 2}, aware).check()
    with pytest.raises(DataError, match=r"is 99.0, and its counts give 100.0"):
        Score.of(CORRECT, 2, {"correct": 1, "total": 2}, replace(aware, value=99.0)).check()


def test_without_a_form_nothing_is_known_of_the_value() -> None:
    Score(50.0, 2, {"correct": 7}).check()
