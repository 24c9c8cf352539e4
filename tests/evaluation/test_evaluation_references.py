"""Baselines and joint bounds come from other runs' results, and only from those that measured the same."""

from __future__ import annotations

import pytest

from mtpeft.errors import UsageError
from mtpeft.evaluation import ResultMatrix, TaskRecord, add_references, summarize


def results(stages: list[list[str]], rows: list[dict[str, float]], *, metric: str = "top-1", count: int = 10):
    names = dict.fromkeys(name for stage in stages for name in stage)
    matrix = ResultMatrix({name: TaskRecord("cls", metric, True, None, "%") for name in names}, stages)
    for stage, row in enumerate(rows):
        for name, value in row.items():
            matrix.add(stage, name, value, count)
    return matrix


def sequential() -> ResultMatrix:
    return results([["a"], ["b"], ["c"]], [{"a": 80}, {"a": 70, "b": 90}, {"a": 60, "b": 85, "c": 95}])


def alone(name: str, value: float, **more) -> ResultMatrix:
    return results([[name]], [{name: value}], **more)


def test_a_run_of_one_task_is_its_baseline_and_one_of_all_the_joint_bound() -> None:
    matrix = sequential()
    references = {f"alone-{name}": alone(name, value) for name, value in {"a": 90.0, "b": 95.0, "c": 100.0}.items()}
    references["two"] = results([["b", "a"]], [{"a": 84, "b": 92}])
    references["all"] = results([["a", "b", "c"]], [{"a": 82, "b": 90, "c": 97}])
    assert summarize(matrix)["delta"] is None and summarize(matrix)["joint_average"] is None
    add_references(matrix, references)
    summary = summarize(matrix)
    assert [matrix.tasks[name].baseline for name in "abc"] == [90, 95, 100]
    assert summary["tasks"]["a"]["delta"] == pytest.approx(100 * (60 - 90) / 90)
    assert summary["tasks"]["b"]["joint_intransigence"] == 92 - 90
    assert summary["tasks"]["c"]["joint_intransigence"] == 97 - 95
    assert summary["joint_average"] == pytest.approx((82 + 90 + 97) / 3)


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (sequential(), "has 3 stages"),
        (alone("x", 1.0), 'trained a task "x"'),
        (alone("a", 1.0, metric="AP"), "measured AP"),
        (alone("a", 1.0, count=11), "was evaluated on 11 samples"),
        (results([["a", "c"]], [{"a": 1, "c": 2}]), "which no stage of the run has seen"),
    ],
)
def test_what_measured_something_else_is_refused(other: ResultMatrix, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        add_references(sequential(), {"other": other})


@pytest.mark.parametrize("other", [alone("a", 90.0), results([["a", "b"]], [{"a": 1, "b": 2}])])
def test_what_was_said_is_not_said_again(other: ResultMatrix) -> None:
    with pytest.raises(UsageError, match="a second"):
        add_references(sequential(), {"one": other, "other": other})
