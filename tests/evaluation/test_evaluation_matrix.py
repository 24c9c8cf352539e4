"""The matrix refuses what it cannot mean; its file is strict."""

from __future__ import annotations

import json
import subprocess
import sys
from copy import deepcopy
from typing import Any

import pytest

from mtpeft.errors import DataError, MtpeftError
from mtpeft.evaluation import Costs, Parameters, ResultMatrix, TaskRecord

CLS = TaskRecord("cls", "accuracy", True, 97.0, "%", 10.0)
SEG = TaskRecord("seg", "mIoU", True, None)


def small() -> ResultMatrix:
    costs = Costs(Parameters(7, {"cls": 1}, {"cls": 2, "seg": 3}, 1000), seconds=1.5, peak_memory_bytes=10)
    matrix = ResultMatrix({"cls": CLS, "seg": SEG}, [["cls"], ["seg"]], costs)
    matrix.add(0, "cls", 90.0, 50, {"correct": 45})
    matrix.add(1, "cls", 80.0, 50, {"correct": 40})
    matrix.add(1, "seg", None, 0)
    return matrix


def test_the_file_is_long_form() -> None:
    data = small().to_json()
    assert data["format"] == 1
    assert data["tasks"]["seg"] == {"type": "seg", "metric": "mIoU", "higher_is_better": True, "baseline": None}
    assert data["tasks"]["cls"]["floor"] == 10.0
    assert data["stages"] == [["cls"], ["seg"]]
    assert data["matrix"][0] == {"stage": 0, "task": "cls", "value": 90.0, "count": 50, "detail": {"correct": 45}}
    assert data["matrix"][2]["value"] is None
    assert data["costs"]["parameters"] == {
        "shared": 7,
        "tasks": {"cls": 1},
        "heads": {"cls": 2, "seg": 3},
        "backbone": 1000,
    }
    assert data["summary"]["tasks"]["cls"]["forgetting"] == 10


def test_a_file_survives_json() -> None:
    data = json.loads(json.dumps(small().to_json(), allow_nan=False))
    assert ResultMatrix.from_json(data).to_json() == small().to_json()


def test_only_what_the_file_must_have_is_needed() -> None:
    data = small().to_json()
    del data["costs"], data["summary"]
    matrix = ResultMatrix.from_json(data)
    assert matrix.costs is None
    assert matrix.to_json()["costs"] == {}


def test_a_stored_summary_is_never_believed() -> None:
    data = small().to_json()
    data["summary"] = {"average": 100}
    assert ResultMatrix.from_json(data).to_json()["summary"] == small().to_json()["summary"]


def change(path: str, value: Any) -> dict[str, Any]:
    data: Any = deepcopy(small().to_json())
    place, *steps = path.split(".")
    target = data
    for step in [place, *steps][:-1]:
        target = target[int(step) if isinstance(target, list) else step]
    last = path.split(".")[-1]
    target[int(last) if isinstance(target, list) else last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", 2, "results.json: format: input should be 1"),
        ("tasks.cls", {"type": "cls", "higher_is_better": True, "baseline": None}, "tasks.cls.metric: is missing"),
        ("tasks.cls.baseline", "97", "tasks.cls.baseline: input should be a valid number"),
        ("tasks.cls.higher", True, "tasks.cls.higher: is not a field of this file"),
        ("matrix.0.value", float("nan"), "matrix.0.value: input should be a finite number"),
        ("matrix.0.value", True, "matrix.0.value: input should be a valid number"),
        ("matrix.0.count", 1.5, "matrix.0.count: input should be a valid integer"),
        ("matrix.0.count", -1, "counts -1 samples"),
        ("matrix.0.stage", 2, "results.json: there is no stage 2"),
        ("matrix.0.task", "clss", 'results.json: there is no task "clss"'),
        ("matrix.1.stage", 0, 'results.json: stage 0 already has a result for "cls"'),
        ("stages", [["cls"], []], "results.json: stage 1 has no task"),
        ("stages", [["cls"], ["sag"]], 'there is no task "sag"'),
        ("costs.second", 3, "results.json: costs: second: is not a field of this file"),
        ("extra", 3, "results.json: extra: is not a field of this file"),
    ],
)
def test_files_that_cannot_be_are_refused_by_field(path: str, value: Any, message: str) -> None:
    with pytest.raises(DataError) as error:
        ResultMatrix.from_json(change(path, value))
    assert message in error.value.message
    assert error.value.hint


@pytest.mark.parametrize("data", [[], None, "x", 3])
def test_what_is_no_table_at_all_is_refused(data: Any) -> None:
    with pytest.raises(DataError, match=r"^run/results.json: the whole: "):
        ResultMatrix.from_json(data, where="run/results.json")


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ((0, "cls", 1.0, 1), 'stage 0 already has a result for "cls"', "written once"),
        ((0, "sgg", 1.0, 1), 'there is no task "sgg"', 'did you mean "seg"?'),
        ((2, "cls", 1.0, 1), "there is no stage 2", "there are 2"),
        ((-1, "cls", 1.0, 1), "there is no stage -1", "counted from 0"),
        ((0, "seg", float("nan"), 1), 'the result of "seg" is nan', "is None"),
        ((0, "seg", float("inf"), 1), 'the result of "seg" is inf', "is None"),
        ((0, "seg", 1.0, -1), "counts -1 samples", "0 or more"),
    ],
)
def test_cells_that_cannot_be_are_refused(arguments: tuple, message: str, hint: str) -> None:
    with pytest.raises(MtpeftError) as error:
        small().add(*arguments)
    assert message in error.value.message
    assert hint in error.value.hint


def test_where_a_task_was_learned_and_what_was_seen() -> None:
    matrix = small()
    assert (matrix.learned_at("cls"), matrix.learned_at("seg"), matrix.last) == (0, 1, 1)
    assert (matrix.seen(0), matrix.seen(1)) == (("cls",), ("cls", "seg"))
    assert matrix.value(0, "seg") is None
    fresh = ResultMatrix({"cls": CLS}, [["cls"]])
    assert (fresh.last, fresh.learned_at("cls")) == (-1, None)


def test_costs_count_by_owner() -> None:
    parameters = Parameters(60, {"a": 10, "b": 10}, {"a": 5, "b": 15}, 1000)
    assert (parameters.parts, parameters.total) == (80, 100)
    assert parameters.shared_fraction == 0.6
    assert parameters.percent == 8
    assert Parameters().shared_fraction is Parameters(5).percent is None
    costs = Costs(parameters, 8, 1.5, 3, 2.0, 2)
    assert Costs.from_dict(json.loads(json.dumps(costs.to_dict()))) == costs


def test_evaluation_imports_no_torch() -> None:
    code = "import sys, mtpeft.evaluation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
