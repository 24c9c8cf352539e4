"""Every golden of the literature, and the laws that hold for any matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtpeft.evaluation import Costs, Parameters, ResultMatrix, TaskRecord, summarize
from mtpeft.evaluation.summary import reliable

ACCURACY = TaskRecord("cls", "accuracy", True, None, "%")
ERROR = TaskRecord("cls", "error", False, None, "%")
GOLDEN = [[90], [80, 70], [85, 74, 95], [70, 76, 80, 88], [60, 78, 75, 80, 91]]


def sequence(rows: Sequence[Sequence[float | None]], record: TaskRecord = ACCURACY, first: int = 1) -> ResultMatrix:
    """One task t1, t2, ... for each stage; row i holds the scores after stage i."""
    names = [f"t{i}" for i in range(first, first + len(rows))]
    matrix = ResultMatrix(dict.fromkeys(names, record), [[name] for name in names])
    for stage, row in enumerate(rows):
        for name, value in zip(names, row, strict=False):
            matrix.add(stage, name, value, 10)
    return matrix


def column(summary: dict[str, Any], name: str) -> list[Any]:
    return [row[name] for row in summary["tasks"].values()]


def test_golden_matrix() -> None:
    summary = summarize(sequence(GOLDEN))
    assert summary["average"] == pytest.approx(76.8)
    assert summary["averages"] == pytest.approx([90, 75, 84.6667, 78.5, 76.8], abs=1e-4)
    assert summary["average_incremental"] == pytest.approx(80.9933, abs=1e-4)
    assert summary["learning"] == pytest.approx(86.8)
    assert summary["backward_transfer"] == pytest.approx(-12.5)
    assert summary["backward_transfer_pairs"] == pytest.approx(-9.0)
    assert column(summary, "forgetting") == [30, -2, 20, 8, None]
    assert summary["forgetting"] == pytest.approx(14.0)
    assert column(summary, "learn") == [90, 70, 95, 88, 91]
    assert column(summary, "peak") == [90, 76, 95, 88, 91]
    assert column(summary, "last") == [60, 78, 75, 80, 91]
    assert summary["forward_transfer"] is None
    assert summary["delta"] is summary["delta_macro"] is None


def test_twelve_tasks_are_not_sorted_as_strings() -> None:
    rows = [[100 - 5 * (stage - task) - task for task in range(stage + 1)] for stage in range(12)]
    summary = summarize(sequence(rows))
    assert column(summary, "learn") == [100 - task for task in range(12)]
    assert column(summary, "forgetting") == [*(5 * (11 - task) for task in range(11)), None]
    assert summary["forgetting"] == pytest.approx(30)
    assert summary["averages"][10] == pytest.approx(sum(rows[10]) / 11)


def test_lower_is_better_mirrors_higher() -> None:
    mirrored = summarize(sequence([[100 - value for value in row] for row in GOLDEN], ERROR))
    summary = summarize(sequence(GOLDEN))
    for name in ("forgetting", "backward_transfer", "backward_transfer_pairs"):
        assert mirrored[name] == pytest.approx(summary[name])
    for name in ("average", "average_incremental", "learning"):
        assert mirrored[name] == pytest.approx(100 - summary[name])
    assert column(mirrored, "peak") == [10, 24, 5, 12, 9]


def test_a_null_cell_is_left_out_and_listed_never_zero() -> None:
    rows: list[list[float | None]] = [list(row) for row in GOLDEN]
    rows[4][2] = None
    summary = summarize(sequence(rows))
    assert summary["tasks"]["t3"]["last"] is summary["tasks"]["t3"]["forgetting"] is None
    assert summary["undefined"] == [{"stage": 4, "task": "t3"}]
    assert summary["average"] == pytest.approx((60 + 78 + 80 + 91) / 4)
    assert summary["forgetting"] == pytest.approx((30 - 2 + 8) / 3)
    rows[4][2], rows[2][2] = 75, None
    learned_undefined = summarize(sequence(rows))["tasks"]["t3"]
    assert learned_undefined["learn"] is None
    assert (learned_undefined["peak"], learned_undefined["forgetting"]) == (80, 5)


def test_a_column_of_nulls_gives_nulls() -> None:
    summary = summarize(sequence([[None], [None, None]]))
    assert summary["average"] is summary["forgetting"] is summary["learning"] is None
    assert column(summary, "peak") == [None, None]


def test_one_task_has_nothing_to_forget() -> None:
    summary = summarize(sequence([[73.5]]))
    assert (summary["average"], summary["average_incremental"], summary["learning"]) == (73.5, 73.5, 73.5)
    for name in ("forgetting", "backward_transfer", "backward_transfer_pairs", "relative_forgetting", "stability"):
        assert summary[name] is None


def test_later_stages_may_help() -> None:
    summary = summarize(sequence([[50], [60, 70]]))
    assert summary["backward_transfer"] == 10
    assert summary["forgetting"] == -10
    assert summary["relative_forgetting"] == -20


def test_nothing_evaluated_yet() -> None:
    summary = summarize(ResultMatrix({"t1": ACCURACY}, [["t1"]]))
    assert summary["average"] is summary["forgetting"] is None
    assert column(summary, "learn") == [None]


def test_a_run_that_stopped_early_is_summarized_as_far_as_it_came() -> None:
    records = {f"t{i}": ACCURACY for i in range(1, 6)}
    matrix = ResultMatrix(records, [[name] for name in records])
    for stage, row in enumerate(GOLDEN[:3]):
        for name, value in zip(records, row, strict=False):
            matrix.add(stage, name, value, 10)
    summary = summarize(matrix)
    assert column(summary, "forgetting") == [5, -4, None, None, None]
    assert column(summary, "last") == [85, 74, 95, None, None]
    assert summary["average"] == pytest.approx(84.6667, abs=1e-4)


def test_forward_transfer_needs_scores_before_learning_and_a_floor() -> None:
    matrix = sequence([[90], [80, 70], [85, 74, 95]], replace(ACCURACY, floor=10.0))
    matrix.add(0, "t2", 15, 10)
    matrix.add(1, "t3", 31, 10)
    assert summarize(matrix)["forward_transfer"] == pytest.approx((5 + 21) / 2)
    assert summarize(matrix)["averages"][0] == 90


FIVE = {
    "flowers": TaskRecord("cls", "accuracy", True, 97, "%", 100 / 102),
    "pets": TaskRecord("cls", "accuracy", True, 92, "%", 100 / 37),
    "voc": TaskRecord("det", "AP", True, 48, "%", 0),
    "ade": TaskRecord("seg", "mIoU", True, 42, "%", 0.6),
    "nyu": TaskRecord("depth", "RMSE", False, 0.45, "m"),
}
FIVE_ROWS = [[96.5], [95.9, 91.0], [93.0, 88.5, 46.0], [90.2, 86.0, 36.8, 40.5], [89.8, 85.5, 35.5, 33.2, 0.47]]
FIVE_TABLE = {
    "flowers": (96.5, 96.5, 89.8, 6.7, 6.94, 7.01, 0.52, -6.91, -7.42),
    "pets": (91.0, 91.0, 85.5, 5.5, 6.04, 6.23, 1.09, -5.98, -7.07),
    "voc": (46.0, 46.0, 35.5, 10.5, 22.83, 22.83, 4.17, -21.88, -26.04),
    "ade": (40.5, 40.5, 33.2, 7.3, 18.02, 18.30, 3.57, -17.38, -20.95),
    "nyu": (0.47, 0.47, 0.47, None, None, None, 4.44, None, -4.44),
}
COLUMNS = ("learn", "peak", "last", "forgetting", "relative_forgetting", "relative_forgetting_floor")
COLUMNS += ("intransigence", "stability", "delta")


def five_types() -> ResultMatrix:
    matrix = ResultMatrix(FIVE, [[name] for name in FIVE])
    for stage, row in enumerate(FIVE_ROWS):
        for name, value in zip(FIVE, row, strict=False):
            matrix.add(stage, name, value, 10)
    return matrix


@pytest.mark.parametrize("name", FIVE)
def test_golden_table_of_five_types(name: str) -> None:
    row = summarize(five_types())["tasks"][name]
    for heading, expected in zip(COLUMNS, FIVE_TABLE[name], strict=True):
        assert row[heading] == (None if expected is None else pytest.approx(expected, abs=0.0051)), heading


def test_golden_aggregates_of_five_types() -> None:
    summary = summarize(five_types())
    expected = {"delta": -13.19, "delta_macro": -14.67, "intransigence": 2.76, "stability": -10.43}
    expected |= {"relative_forgetting": 13.46, "relative_forgetting_macro": 15.78, "relative_forgetting_worst": 22.83}
    for name, value in expected.items():
        assert summary[name] == pytest.approx(value, abs=0.0051), name
    for name in ("average", "average_incremental", "averages", "learning", "backward_transfer", "forgetting"):
        assert summary[name] is None, f"{name} adds percents to metres"


PASCAL = {"semseg": (True, 67.21), "parts": (True, 61.93), "saliency": (True, 62.35), "normals": (False, 17.97)}


@pytest.mark.parametrize(
    ("row", "delta"),
    [
        ((65.09, 53.48, 57.46, 20.69), -9.95),
        ((67.56, 60.24, 65.21, 16.64), 2.45),  # printed as +2.23; the cells give this
        ((69.21, 57.38, 61.28, 18.83), -2.71),
        ((68.57, 55.99, 60.64, 19.42), -4.60),
        ((62.96, 52.27, 58.31, 20.90), -11.18),
        ((64.35, 52.54, 58.15, 21.07), -10.85),
        ((70.12, 57.73, 61.90, 18.96), -2.17),
        ((70.21, 59.15, 62.29, 19.26), -1.83),
        ((71.43, 60.73, 65.54, 17.77), 2.64),
        ((70.87, 59.54, 65.47, 17.47), 2.34),
        ((68.19, 58.99, 64.48, 17.03), 1.35),
        ((67.74, 59.46, 64.90, 16.59), 2.16),
        ((67.90, 59.84, 65.40, 16.60), 2.55),
        ((68.38, 59.58, 63.85, 16.76), 1.77),
        ((69.79, 59.27, 65.04, 16.91), 2.44),
        ((70.20, 60.00, 65.71, 16.57), 3.63),
        ((70.82, 60.45, 65.88, 16.48), 4.24),
        ((69.66, 62.02, 65.00, 17.10), 3.22),
        ((72.20, 62.33, 65.70, 16.55), 5.33),
        ((71.25, 61.38, 66.24, 16.14), 5.39),
        ((72.02, 61.25, 66.11, 16.35), 5.28),
    ],
)
def test_published_multi_task_deltas(row: tuple[float, ...], delta: float) -> None:
    records = {name: TaskRecord(name, "mIoU" if up else "RMSE", up, base) for name, (up, base) in PASCAL.items()}
    matrix = ResultMatrix(records, [list(records)])
    for name, value in zip(records, row, strict=True):
        matrix.add(0, name, value, 10)
    summary = summarize(matrix)
    assert summary["delta"] == summary["delta_macro"] == pytest.approx(delta, abs=0.02)
    assert summary["intransigence"] == pytest.approx(-summary["delta"])
    assert summary["stability"] is summary["forgetting"] is None


def test_stages_of_several_tasks() -> None:
    matrix = ResultMatrix(dict.fromkeys("abc", ACCURACY), [["a", "b"], ["c"]])
    for stage, name, value in [(0, "a", 90), (0, "b", 80), (1, "a", 85), (1, "b", 82), (1, "c", 70)]:
        matrix.add(stage, name, value, 10)
    summary = summarize(matrix)
    assert column(summary, "forgetting") == [5, -2, None]
    assert summary["averages"] == [85, 79]
    assert summary["backward_transfer"] == pytest.approx((-5 + 2) / 2)


def test_isolation_is_what_the_costs_say_and_never_guessed_from_counts() -> None:
    matrix = sequence([[90], [90, 80]])
    assert column(summarize(matrix), "isolated") == [False, False]
    own = Parameters(0, {"t1": 10, "t2": 10}, {"t1": 5, "t2": 5})  # nothing shared, and yet t2 may train what t1 uses
    matrix.costs = Costs(own)
    assert summarize(matrix)["isolated"] is False
    matrix.costs = Costs(own, isolated=("t1",))
    assert column(summarize(matrix), "isolated") == [True, False]
    assert summarize(matrix)["isolated"] is False
    matrix.costs = Costs(own, isolated=("t2", "t1"))
    assert summarize(matrix)["isolated"] is True
    assert column(summarize(matrix), "forgetting") == [0, None]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (ACCURACY, True),
        (replace(ACCURACY, baseline=50.0), True),
        (replace(ACCURACY, baseline=0.9), False),
        (replace(ACCURACY, baseline=0.9, unit=""), True),
        (replace(ACCURACY, baseline=0.0, unit=""), False),
        (replace(ACCURACY, baseline=19.0, floor=10.0), False),
        (replace(ACCURACY, baseline=20.0, floor=10.0), True),
        (replace(ERROR, baseline=0.45), True),
        (replace(ERROR, baseline=0.0), False),
    ],
)
def test_baselines_near_the_floor_are_unreliable(record: TaskRecord, expected: bool) -> None:
    assert reliable(record) is expected


def test_unreliable_baselines_leave_the_means() -> None:
    records = {"good": replace(ACCURACY, baseline=80.0), "poor": replace(ACCURACY, baseline=0.5)}
    matrix = ResultMatrix(records, [["good", "poor"]])
    matrix.add(0, "good", 72, 10)
    matrix.add(0, "poor", 5, 10)
    summary = summarize(matrix)
    assert summary["unreliable"] == ["poor"]
    assert summary["tasks"]["poor"]["delta"] == pytest.approx(900)
    assert summary["delta"] == summary["delta_macro"] == pytest.approx(-10)


scores = st.floats(0.1, 100).map(lambda value: round(value, 3))
records = st.builds(
    TaskRecord, st.sampled_from(["cls", "det", "seg"]), st.just("m"), st.booleans(), st.floats(2, 100), st.just("%")
)


@st.composite
def matrices(draw: st.DrawFn) -> ResultMatrix:
    tasks = draw(st.lists(records, min_size=1, max_size=5))
    named = {f"t{i}": record for i, record in enumerate(tasks)}
    cuts = draw(st.lists(st.booleans(), min_size=len(named), max_size=len(named)))
    stages: list[list[str]] = [[]]
    for name, cut in zip(named, cuts, strict=True):
        if cut and stages[-1]:
            stages.append([])
        stages[-1].append(name)
    matrix = ResultMatrix(named, stages)
    for stage in range(len(stages)):
        for name in matrix.seen(stage):
            matrix.add(stage, name, draw(scores), 10)
    return matrix


@given(matrices())
def test_delta_is_stability_minus_intransigence(matrix: ResultMatrix) -> None:
    summary = summarize(matrix)
    for row in summary["tasks"].values():
        assert row["delta"] == pytest.approx((row["stability"] or 0) - row["intransigence"], abs=1e-6)
    assert summary["delta"] == pytest.approx((summary["stability"] or 0) - summary["intransigence"], abs=1e-6)


@given(matrices(), st.randoms(use_true_random=False))
def test_no_order_of_tasks_or_cells_matters(matrix: ResultMatrix, random: Any) -> None:
    names, cells = list(matrix.tasks), list(matrix.cells.items())
    random.shuffle(names)
    random.shuffle(cells)
    other = ResultMatrix({name: matrix.tasks[name] for name in names}, [list(s)[::-1] for s in matrix.stages])
    for (stage, name), cell in cells:
        other.add(stage, name, cell.value, cell.count)
    assert summarize(other) == summarize(matrix)


@given(matrices())
def test_peaks_bound_what_was_forgotten(matrix: ResultMatrix) -> None:
    for name, row in summarize(matrix)["tasks"].items():
        sign = matrix.tasks[name].sign
        assert sign * row["peak"] >= sign * row["learn"]
        if row["forgetting"] is None:
            assert row["last"] == row["learn"]
        else:
            assert row["forgetting"] >= sign * (row["learn"] - row["last"])


@given(matrices())
def test_a_file_holds_all_that_the_summary_needs(matrix: ResultMatrix) -> None:
    data = matrix.to_json()
    again = ResultMatrix.from_json(data)
    assert again.to_json() == data
    assert summarize(again) == data["summary"]
