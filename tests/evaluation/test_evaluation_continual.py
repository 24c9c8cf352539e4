"""What continual learning asks beside forgetting: task-aware scores, sample means, bounds, transfer, the dip inside."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtpeft.evaluation import Costs, Parameters, ResultMatrix, StageCosts, TaskRecord
from mtpeft.score import Form, Score

CORRECT = Form("ratio", ("correct", "total"), 100)
ACCURACY = TaskRecord("cls", "accuracy", True, None, "%")
GOLDEN = [[90], [80, 70], [85, 74, 95], [70, 76, 80, 88], [60, 78, 75, 80, 91]]


def right(correct: int, total: int, aware: int | None = None) -> Score:
    second = None if aware is None else right(aware, total)
    return Score.of(CORRECT, total, {"correct": correct, "total": total}, second)


def two(record: TaskRecord = ACCURACY) -> ResultMatrix:
    matrix = ResultMatrix({"a": record, "b": record}, [["a"], ["b"]])
    matrix.record(0, "a", right(9, 10, 10))
    matrix.record(1, "a", right(5, 10, 8))
    matrix.record(1, "b", right(27, 30, 30))
    return matrix


def again(matrix: ResultMatrix) -> dict[str, Any]:
    """The summary, from the file alone."""
    return ResultMatrix.from_json(json.loads(json.dumps(matrix.to_json()))).to_json()["summary"]


def test_samples_weigh_alike_or_tasks_do() -> None:
    summary = again(two())
    assert (summary["average"], summary["averages"]) == (70, [90, 70])
    assert (summary["sample_average"], summary["sample_averages"]) == (80, [90, 80])
    assert (summary["average_incremental"], summary["sample_average_incremental"]) == (80, 85)


def test_without_counts_no_sample_can_be_weighed() -> None:
    matrix = ResultMatrix({"a": ACCURACY, "b": ACCURACY}, [["a"], ["b"]])
    matrix.record(0, "a", right(9, 10))
    matrix.record(1, "a", right(5, 10))
    matrix.add(1, "b", 90.0, 30)
    summary = again(matrix)
    assert (summary["average"], summary["sample_average"], summary["sample_averages"]) == (70, None, [90, None])
    assert summary["sample_average_incremental"] is None


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=6))
def test_the_sample_mean_is_the_ratio_of_sums(counts: list[tuple[int, int]]) -> None:
    counts = [(min(pair), max(pair)) for pair in counts]
    names = [f"t{i}" for i in range(len(counts))]
    matrix = ResultMatrix(dict.fromkeys(names, ACCURACY), [names])
    for name, pair in zip(names, counts, strict=True):
        matrix.record(0, name, right(*pair))
    correct, total = (sum(column) for column in zip(*counts, strict=True))
    expected = pytest.approx(100 * correct / total) if total else None
    assert again(matrix)["sample_average"] == expected


def test_task_aware_stands_beside_task_agnostic() -> None:
    summary = again(two())
    assert [row["task_aware"] for row in summary["tasks"].values()] == [80, 100]
    assert [row["last"] for row in summary["tasks"].values()] == [50, 90]
    assert summary["task_aware_average"] == 90


def test_a_head_of_its_own_is_task_aware_already() -> None:
    matrix = two()
    matrix.cells[1, "b"] = right(27, 30)
    summary = again(matrix)
    assert [row["task_aware"] for row in summary["tasks"].values()] == [80, None]
    assert summary["task_aware_average"] == 85


def test_what_was_not_measured_is_null() -> None:
    matrix = ResultMatrix({"a": ACCURACY, "b": ACCURACY}, [["a"], ["b"]])
    for stage, name in [(0, "a"), (1, "a"), (1, "b")]:
        matrix.add(stage, name, 50.0, 10)
    summary = again(matrix)
    for name in ("sample_average", "task_aware_average", "joint_average", "joint_intransigence", "forward_transfer"):
        assert summary[name] is None, name
    assert summary["worst_average"] is summary["worst_case"] is None
    for name in ("before", "task_aware", "worst", "joint", "joint_intransigence"):
        assert [row[name] for row in summary["tasks"].values()] == [None, None], name


@pytest.mark.parametrize("sign", [1, -1])
def test_the_joint_bound_says_what_was_not_learned(sign: int) -> None:
    record = replace(ACCURACY, higher_is_better=sign > 0)
    matrix = ResultMatrix({"a": record, "b": record}, [["a"], ["b"]])
    for stage, name, value in [(0, "a", 90), (1, "a", 70), (1, "b", 80)]:
        matrix.add(stage, name, value, 10)
    for stage, name, value in [(0, "a", 90), (1, "a", 88), (1, "b", 86)]:
        matrix.record_joint(stage, name, Score(value, 10))
    summary = again(matrix)
    assert [row["joint"] for row in summary["tasks"].values()] == [88, 86]
    assert [row["joint_intransigence"] for row in summary["tasks"].values()] == [0, sign * 6]
    assert (summary["joint_intransigence"], summary["joint_average"]) == (sign * 3, 87)


def test_evaluations_before_a_stage_are_forward_transfer_and_nothing_else() -> None:
    matrix = two(replace(ACCURACY, floor=10.0))
    plain = again(matrix)
    matrix.record(0, "b", right(6, 30))
    summary = again(matrix)
    assert summary["forward_transfer"] == 10
    assert [row["before"] for row in summary["tasks"].values()] == [None, 20]
    changed = {name for name in summary if summary[name] != plain[name]}
    assert changed == {"forward_transfer", "tasks"}


def test_the_dip_inside_a_stage_is_no_forgetting_after_it() -> None:
    """Task a falls to 20 inside the second stage, and has recovered to 85 when it ends."""
    matrix = ResultMatrix(dict.fromkeys("abc", ACCURACY), [["a"], ["b"], ["c"]])
    for stage, row in enumerate([[90], [85, 80], [88, 75, 70]]):
        for name, value in zip("abc", row, strict=False):
            matrix.add(stage, name, value, 10)
    for stage, update, name, value in [
        (0, 5, "a", 3),
        (1, 1, "a", 20),
        (1, 2, "a", 60),
        (2, 1, "a", 50),
        (2, 1, "b", 60),
    ]:
        matrix.record_probe(stage, update, name, Score(value, 10))
    summary = again(matrix)
    assert [row["worst"] for row in summary["tasks"].values()] == [20, 60, None]
    assert summary["worst_average"] == 40  # min-ACC
    assert summary["worst_case"] == pytest.approx(70 / 3 + 2 / 3 * 40)  # WC-ACC
    assert summary["tasks"]["a"]["forgetting"] == 2


def test_the_worst_of_an_error_is_the_largest() -> None:
    record = replace(ACCURACY, higher_is_better=False)
    matrix = ResultMatrix({"a": record, "b": record}, [["a"], ["b"]])
    for stage, name, value in [(0, "a", 0.1), (1, "a", 0.2), (1, "b", 0.1)]:
        matrix.add(stage, name, value, 10)
    matrix.record_probe(1, 3, "a", Score(0.9, 10))
    matrix.record_probe(1, 4, "a", Score(None, 10))
    assert again(matrix)["tasks"]["a"]["worst"] == 0.9


def golden(names: list[str], sign: int = 1) -> ResultMatrix:
    """The golden matrix under these names; mirrored where lower is better."""
    record = replace(ACCURACY, higher_is_better=sign > 0)
    matrix = ResultMatrix(dict.fromkeys(names, record), [[name] for name in names])
    for stage, row in enumerate(GOLDEN):
        for name, value in zip(names, row, strict=False):
            matrix.add(stage, name, value if sign > 0 else 100 - value, 10)
    return matrix


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("names", [["80-99", "100-119", "20-39", "3", "10"], ["t10", "t9", "T1", "t2", "t1"]])
def test_names_that_sort_badly_change_nothing(names: list[str], sign: int) -> None:
    summary = again(golden(names, sign))
    assert list(summary["tasks"]) == names
    assert [row["forgetting"] for row in summary["tasks"].values()] == [30, -2, 20, 8, None]
    for name, value in {"forgetting": 14, "backward_transfer": -12.5, "backward_transfer_pairs": -9}.items():
        assert summary[name] == pytest.approx(value), name
    for name, value in {"average": 76.8, "learning": 86.8, "average_incremental": 80.9933}.items():
        assert summary[name] == pytest.approx(value if sign > 0 else 100 - value, abs=1e-4), name


def test_twelve_tasks_are_taken_in_the_order_of_stages() -> None:
    """In the order of strings (t1, t10, t11, t12, t2 ...) other numbers come out."""
    names = [f"t{i}" for i in range(1, 13)]
    matrix = ResultMatrix(dict.fromkeys(names, ACCURACY), [[name] for name in names])
    for stage in range(12):
        for task in range(stage + 1):
            matrix.add(stage, names[task], 90.0 - (stage - task) ** 2 / 4 - task, 10)
    summary = again(matrix)
    lost = [(11 - task) ** 2 / 4 for task in range(11)]
    assert [row["forgetting"] for row in summary["tasks"].values()] == [*lost, None]
    assert summary["forgetting"] == pytest.approx(sum(lost) / 11)
    assert summary["backward_transfer"] == pytest.approx(-sum(lost) / 11)


def test_an_increment_of_one_class_is_counted_like_any() -> None:
    matrix = ResultMatrix({"0-4": ACCURACY, "5": ACCURACY}, [["0-4"], ["5"]])
    matrix.record(0, "0-4", right(45, 50))
    matrix.record(1, "0-4", right(40, 50))
    matrix.record(1, "5", right(1, 10))
    summary = again(matrix)
    assert (summary["average"], summary["tasks"]["5"]["learn"]) == (45, 10)
    assert summary["sample_average"] == pytest.approx(100 * 41 / 60)


scores = st.none() | st.floats(0.1, 100).map(lambda value: round(value, 3))
baselines = st.none() | st.floats(2, 100)
records = st.builds(TaskRecord, st.sampled_from(["cls", "det"]), st.just("m"), st.booleans(), baselines, st.just("%"))


@st.composite
def holes(draw: st.DrawFn) -> ResultMatrix:
    """Any matrix, with undefined and missing cells, evaluations before a stage and tasks without baselines."""
    named = {f"t{i}": record for i, record in enumerate(draw(st.lists(records, min_size=1, max_size=5)))}
    stages = [[name] for name in named]
    matrix = ResultMatrix(named, stages)
    for stage in range(len(stages)):
        for name in named:
            if draw(st.integers(0, 4)):
                matrix.add(stage, name, draw(scores), 10)
    return matrix


@given(holes())
def test_delta_is_stability_minus_intransigence_wherever_they_are_defined(matrix: ResultMatrix) -> None:
    summary = again(matrix)
    for name, row in summary["tasks"].items():
        first, base = matrix.learned_at(name), matrix.tasks[name].baseline
        assert (row["delta"] is None) == (row["last"] is None or base is None)
        assert (row["intransigence"] is None) == (row["learn"] is None or base is None)
        if row["delta"] is not None and row["intransigence"] is not None:
            stability = 0 if first == matrix.last else row["stability"]
            assert row["delta"] == pytest.approx(stability - row["intransigence"], abs=1e-6)


@given(holes())
def test_the_means_keep_the_identity_over_the_tasks_that_define_all(matrix: ResultMatrix) -> None:
    rows = again(matrix)["tasks"]
    whole = {name for name, row in rows.items() if row["delta"] is not None and row["intransigence"] is not None}
    order = [name for name in matrix.tasks if name in whole]
    kept = ResultMatrix({name: matrix.tasks[name] for name in order}, [[name] for name in order])
    for stage, name in enumerate(order):
        for task in order[: stage + 1]:
            row = rows[task]
            kept.add(stage, task, row["learn"] if task == name else row["last"], 10)
    summary = again(kept)
    if whole:
        assert summary["delta"] == pytest.approx((summary["stability"] or 0) - summary["intransigence"], abs=1e-6)
    else:
        assert summary["delta"] is summary["stability"] is summary["intransigence"] is None


@given(holes())
def test_undefined_is_null_and_never_a_number(matrix: ResultMatrix) -> None:
    summary = again(matrix)
    json.dumps(summary, allow_nan=False)
    for name, row in summary["tasks"].items():
        assert row["last"] == (None if matrix.learned_at(name) is None else matrix.value(matrix.last, name))
        if row["learn"] is None:
            assert row["stability"] is row["intransigence"] is None
    nulls = [{"stage": stage, "task": task} for (stage, task), cell in matrix.cells.items() if cell.value is None]
    assert summary["undefined"] == nulls


def test_costs_of_stages_survive_the_file() -> None:
    first = StageCosts(0, ("a",), 1000, 4096, 300, 12.5, 20.0, 100, 1600, 150.0, 2)
    matrix = two()
    matrix.costs = Costs(
        Parameters(0, {"a": 5, "b": 5}), memory_bytes=300, isolated=("b",), stages=(first, StageCosts(1, ("b",)))
    )
    data = json.loads(json.dumps(matrix.to_json()))
    assert ResultMatrix.from_json(data).costs == matrix.costs
    assert data["costs"]["stages"][1] == {
        "stage": 1, "tasks": ["b"], "parameters": 0, "statistics_bytes": 0, "memory_bytes": 0, "seconds": None,
        "cpu_seconds": None, "updates": 0, "images": 0, "images_per_second": None, "inference_passes": 1,
    }  # fmt: skip
    assert [row["isolated"] for row in data["summary"]["tasks"].values()] == [False, True]


def test_a_matrix_continues_with_further_stages() -> None:
    matrix = two()
    matrix.record_probe(1, 3, "a", Score(1.0, 1))
    matrix.record_joint(1, "b", Score(2.0, 1))
    more = matrix.continued({**matrix.tasks, "c": ACCURACY}, [["c"]])
    assert more.stages == [("a",), ("b",), ("c",)]
    assert (more.cells, more.probes, more.joint) == (matrix.cells, matrix.probes, matrix.joint)
    more.add(2, "c", 1.0, 1)
    assert (2, "c") not in matrix.cells
