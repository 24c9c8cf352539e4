"""Whatever is wrong with a results file, it is refused in a sentence, and what is accepted can be summarized."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mtpeft.errors import DataError, MtpeftError
from mtpeft.evaluation import Costs, Parameters, ResultMatrix, StageCosts, TaskRecord
from mtpeft.files import read_json
from mtpeft.reports.text import render
from mtpeft.score import Form, Score

CORRECT = Form("ratio", ("correct", "total"), 100)


def right(correct: int, total: int = 50, aware: int | None = None) -> Score:
    second = None if aware is None else Score.of(CORRECT, total, {"correct": aware, "total": total})
    return Score.of(CORRECT, total, {"correct": correct, "total": total, "per_class": {"a": [1, 2]}}, second)


def full() -> dict[str, Any]:
    """A file with everything that a file can hold."""
    records = {
        "a": TaskRecord("cls", "accuracy", True, 97.0, "%", 10.0),
        "b": TaskRecord("cls", "accuracy", True, None),
    }
    matrix = ResultMatrix(records, [["a"], ["b"]])
    matrix.record(0, "a", right(45, aware=46))
    matrix.record(1, "a", right(40, aware=44))
    matrix.record(0, "b", right(5))
    matrix.record(
        1, "b", Score.of(Form("best_f", ("r", "p", "f", "n"), 100), 9, {"r": [1], "p": [2], "f": [3], "n": 4})
    )
    matrix.record_probe(1, 20, "a", right(30))
    matrix.record_joint(1, "a", right(48))
    stages = [StageCosts(0, ("a",), 7, 8, 9, 1.5, 2.5, 3, 4, 5.5), StageCosts(1, ("b",), inference_passes=2)]
    parameters = Parameters(7, {"a": 1}, {"a": 2}, 1000)
    matrix.costs = Costs(parameters, 5, 1.5, 10, 2.5, 2, 3.5, 6, ("a",), tuple(stages))
    return json.loads(json.dumps(matrix.to_json()))


def slots(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container with every key or index in it, but of the summary, which nobody reads."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        if key != "summary":
            yield value, key
            if isinstance(value[key], dict | list):
                yield from slots(value[key])


HOSTILE = [10**400, -(10**400), 2**63, 1e308, -1e308, 1e-320, -1, 0, 0.0, 1.5, 99, float("nan"), float("inf")]
HOSTILE += ["", "a", "\x1b[31m", "\ud800", None, True, False, [], {}, [[]], {"a": {}}, [None], ["a", "a"], "x" * 5000]


def mutate(data: Any, random: Random) -> None:
    for _ in range(random.choice([1, 1, 1, 2, 4])):
        holder, key = random.choice(list(slots(data)))
        action = random.randrange(4)
        if action == 0:
            del holder[key]
        elif action == 1:
            holder[key] = deepcopy(random.choice(HOSTILE))
        elif action == 2 and isinstance(holder, list):
            holder.append(deepcopy(holder[key]))
        else:
            other, name = random.choice(list(slots(data)))
            holder[key] = deepcopy(other[name])
        if not list(slots(data)):
            return


def test_the_full_file_is_read_and_written_again() -> None:
    data = full()
    assert json.loads(json.dumps(ResultMatrix.from_json(data).to_json())) == data


def test_a_thousand_damaged_files_raise_nothing_raw() -> None:
    random, refused = Random(0), 0
    for _ in range(1000):
        data = full()
        mutate(data, random)
        try:
            json.dumps(ResultMatrix.from_json(data, "run").to_json(), allow_nan=False)
            render(data)
        except MtpeftError as error:
            assert isinstance(error, DataError)
            assert error.message.startswith(("run: ", "results.json: ")) and error.hint
            refused += 1
    assert refused > 600


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize(("field", "by"), [("correct", 1), ("total", 1), ("total", -1)])
def test_a_count_that_was_changed_is_noticed(index: int, field: str, by: int) -> None:
    data = full()
    row = data["matrix"][index]
    row["detail"][field] += by
    expected = rf"results.json: stage {row['stage']}: the result of \"{row['task']}\" is .*, and its counts give"
    with pytest.raises(DataError, match=expected):
        ResultMatrix.from_json(data)


@pytest.mark.parametrize("place", ["matrix", "probes", "joint"])
def test_a_value_that_was_changed_is_noticed(place: str) -> None:
    data = full()
    data[place][0]["value"] += 0.001
    with pytest.raises(DataError, match=r"the result of \"a\" is .*, and its counts give"):
        ResultMatrix.from_json(data)


@pytest.mark.parametrize("depth", [100, 500, 900, 5_000, 100_000])
@pytest.mark.parametrize(("opened", "closed"), [('{"a":', "}"), ("[", "]")])
def test_nesting_is_read_or_refused(depth: int, opened: str, closed: str, tmp_path: Path) -> None:
    deep = opened * depth + "1" + closed * depth
    text = json.dumps(full()).replace('"per_class": {"a": [1, 2]}', f'"deep": {deep}')
    assert deep in text
    (tmp_path / "results.json").write_text(text)
    try:
        json.dumps(ResultMatrix.from_json(read_json(tmp_path / "results.json")).to_json())
    except MtpeftError as error:
        assert error.hint and depth > 100


@pytest.mark.parametrize("number", ["1" * 5_000, "-" + "1" * 400, "1e999", "NaN", "-Infinity"])
def test_numbers_that_are_none_are_refused(number: str, tmp_path: Path) -> None:
    text = json.dumps(full()).replace('"correct": 45', f'"correct": {number}')
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(DataError):
        ResultMatrix.from_json(read_json(tmp_path / "results.json"))


def change(path: str, value: Any) -> dict[str, Any]:
    data = full()
    *steps, last = path.split(".")
    target: Any = data
    for step in steps:
        target = target[int(step) if isinstance(target, list) else step]
    target[int(last) if isinstance(target, list) else last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("matrix.0.count", 10**400, "counts 1000"),
        ("matrix.0.form.kind", "sum", "matrix.0.form.kind: input should be"),
        ("matrix.0.form.fields", ["correct", "totals"], 'stage 0: the result of "a" has no detail.totals'),
        ("matrix.0.form.scale", -1, "matrix.0.form.scale: input should be"),
        ("matrix.0.form.import", "os", "matrix.0.form.import: is not a field"),
        ("matrix.0.detail.correct", -5, "has a detail.correct that holds -5"),
        ("matrix.0.detail.per_class", [float("nan")], "has a number in its detail that is not finite"),
        ("matrix.0.task_aware.value", 3.0, "has a task_aware score that is 3.0, and its counts give 92.0"),
        ("matrix.0.task_aware.value", None, "is None, and its counts give 92.0"),
        ("probes.0.stage", 2, "there is no stage 2"),
        ("probes.0.update", -1, "probes.0.update: input should be greater"),
        ("joint.0.task", "c", 'there is no task "c"'),
        ("stages.0", ["a", "a"], "stage 0 names a task twice"),
        ("tasks.a.baseline", 1e300, "tasks.a.baseline: input should be less"),
        ("costs.parameters.shared", -1, "costs: parameters.shared: input should be greater"),
        ("costs.parameters.heads.a", 10**400, "costs: parameters.heads.a: input should be less"),
        ("costs.seconds", -1.0, "costs: seconds: input should be greater"),
        ("costs.isolated", ["c"], 'there is no task "c"'),
        ("costs.stages.0.stage", 1, "costs.stages: stage 1 is out of order"),
        ("costs.stages.1.stage", 7, "there is no stage 7"),
        ("costs.stages.0.tasks", ["c"], 'there is no task "c"'),
        ("costs.stages.0.updates", 1.5, "costs: stages.0.updates: input should be a valid integer"),
        ("costs.stages.0.second", 1.5, "costs: stages.0.second: is not a field"),
    ],
)
def test_fields_that_cannot_be_are_named(path: str, value: Any, message: str) -> None:
    with pytest.raises(DataError) as error:
        ResultMatrix.from_json(change(path, value))
    assert message in error.value.message


@pytest.mark.parametrize("place", ["matrix", "probes", "joint"])
def test_a_cell_is_there_once(place: str) -> None:
    data = full()
    data[place].append(data[place][0])
    with pytest.raises(DataError, match=r'already has a result for "a"'):
        ResultMatrix.from_json(data)


def test_a_file_of_before_is_read_as_it_was() -> None:
    data = full()
    for name in ("probes", "joint"):
        del data[name]
    for row in data["matrix"]:
        row.pop("form"), row.pop("task_aware", None)
    for name in ("memory_bytes", "isolated", "stages"):
        del data["costs"][name]
    matrix = ResultMatrix.from_json(data)
    assert matrix.costs == Costs(Parameters(7, {"a": 1}, {"a": 2}, 1000), 5, 1.5, 10, 2.5, 2, 3.5)
    assert matrix.to_json()["summary"]["sample_average"] is None
    assert matrix.value(1, "a") == 80
