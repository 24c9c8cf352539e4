"""What a report says, and that it can be read at 80 columns without colour."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from mtpeft.errors import DataError
from mtpeft.evaluation import Costs, Parameters, ResultMatrix, StageCosts, TaskRecord
from mtpeft.reports import compare, render, summary_json
from mtpeft.reports.numbers import compact, duration, native, shorten, size, whole

RECORDS = {
    "cls": TaskRecord("cls", "accuracy", True, 97.0, "%"),
    "det": TaskRecord("det", "AP", True, 48.0, "%"),
    "depth": TaskRecord("depth", "RMSE", False, None, "m"),
}
COSTS = Costs(
    Parameters(294_912, {"cls": 0, "det": 1_000}, {"cls": 650, "det": 120_000, "depth": 77}, 5_700_000),
    seconds=731.2, peak_memory_bytes=512 * 2**20, images_per_second=1234.5,
)  # fmt: skip


def matrix(stages: list[list[str]], rows: list[dict[str, float | None]], **changes: Any) -> ResultMatrix:
    names = [name for stage in stages for name in stage]
    records = changes.get("records", RECORDS)
    result = ResultMatrix({name: records[name] for name in names}, stages, changes.get("costs", COSTS))
    for stage, row in enumerate(rows):
        for name, value in row.items():
            result.add(stage, name, value, 10)
    return result


def continual(**changes: Any) -> dict[str, Any]:
    rows = [{"cls": 96.5}, {"cls": 95.9, "det": 46.0}, {"cls": 89.8, "det": 46.5, "depth": 0.4712}]
    return matrix([["cls"], ["det"], ["depth"]], rows, **changes).to_json()


def joint() -> dict[str, Any]:
    return matrix([["cls", "det", "depth"]], [{"cls": 96.0, "det": 45.0, "depth": 0.5}]).to_json()


def table(text: str, heading: str) -> list[list[str]]:
    """The cells of the table whose first heading this is, cut where its rule says."""
    lines = text.split("\n")
    start = next(i for i, line in enumerate(lines) if line.startswith(f"{heading} "))
    edges, position = [], 0
    for dashes in lines[start + 1].split("  "):
        edges.append((position, position + len(dashes)))
        position += len(dashes) + 2
    cut = lines[start : lines.index("", start) if "" in lines[start:] else None]
    return [[line[a:b].strip() for a, b in edges] for line in cut]


def test_a_continual_run_shows_what_was_learned_kept_and_forgotten() -> None:
    heading, _, *rows = table(render(continual()), "task")
    assert heading == ["task", "metric", "learned", "last", "forgetting", "delta %"]
    assert rows == [
        ["cls", "accuracy (%)", "96.50", "89.80", "6.70", "-7.42"],
        ["det", "AP (%)", "46.00", "46.50", "-0.50", "-3.12"],
        ["depth", "RMSE (m)", "0.4712", "0.4712", "-", "-"],
    ]


def test_a_joint_run_shows_learned_only() -> None:
    text = render(joint())
    assert text.startswith("one stage    cls + det + depth\n")
    _, _, *rows = table(text, "task")
    assert rows[0] == ["cls", "accuracy (%)", "96.00", "-", "-", "-1.03"]
    assert [row[3:5] for row in rows] == [["-", "-"]] * 3
    assert "forgetting   " not in text


def test_without_baselines_there_is_no_delta() -> None:
    records = {name: TaskRecord(r.type, r.metric, r.higher_is_better, None, r.unit) for name, r in RECORDS.items()}
    text = render(continual(records=records))
    assert "delta" not in text


def test_costs_are_told_by_owner() -> None:
    text = " ".join(render(continual()).split())
    for words in (
        "shared 294,912 (70.78 % of all trained)",
        "per task 1,000 (cls 0, det 1,000)",
        "heads 120,727 (cls 650, det 120,000, depth 77)",
        "shared and per task are 5.19 % of the backbone",
        "12 min 11 s of training, 1,234 images/s",
        "512.0 MiB at peak",
        "1 pass for each image",
    ):
        assert words in text


def test_costs_that_were_not_measured_are_not_shown() -> None:
    text = render(continual(costs=Costs(statistics_bytes=3 * 2**30, inference_passes=2)))
    assert "time " not in text
    assert "memory " not in text
    assert "statistics   3.0 GiB kept beside parameters" in text
    assert "2 passes" in text
    assert "parameters" not in render(continual(costs=None))


def test_each_stages_costs_are_told() -> None:
    stages = (
        StageCosts(0, ("cls",), 294_912, 2**20, 2**20, 60.5, updates=1000, images_per_second=99.0),
        StageCosts(1, ("det", "depth"), inference_passes=2),
    )
    text = render(continual(costs=replace(COSTS, memory_bytes=3 * 2**20, stages=stages)))
    words = " ".join(text.split())
    assert "exemplars 3.0 MiB of kept samples" in words
    assert "by stage cls: 294,912 trained in 1,000 updates, 60.5 s, 99 images/s, 2.0 MiB kept" in words
    assert "det + depth: 0 trained in 0 updates, 2 passes" in words
    assert max(map(len, text.split("\n"))) <= 80


def test_zero_by_construction_is_called_isolated() -> None:
    costs = Costs(Parameters(0, {"cls": 5, "det": 5}, {"cls": 1, "det": 1}), isolated=("cls", "det"))
    text = render(matrix([["cls"], ["det"]], [{"cls": 90.0}, {"cls": 90.0, "det": 40.0}], costs=costs).to_json())
    assert [row[4] for row in table(text, "task")[2:]] == ["0.00 (isolated)", "-"]
    assert "shared 0 (0.00 % of all trained)" in text
    assert "isolated     no other task" in text


def test_undefined_and_unreliable_are_footnotes() -> None:
    records = RECORDS | {"det": TaskRecord("det", "AP", True, 0.4, "%")}
    stages = [["cls"], ["det"]]
    text = render(matrix(stages, [{"cls": 90.0}, {"cls": None, "det": 40.0}], records=records).to_json())
    assert table(text, "task")[2][2:5] == ["90.00", "-", "-"]
    assert "undefined    cls after stage 1 (counted from 0); it enters no mean" in text
    assert "unreliable   the baseline of det is too near the floor" in text


def test_tasks_of_one_metric_have_native_means() -> None:
    records = {name: TaskRecord("cls", "accuracy", True, None, "%") for name in ("a", "b")}
    text = render(matrix([["a"], ["b"]], [{"a": 90.0}, {"a": 80.0, "b": 70.0}], records=records).to_json())
    words = " ".join(text.split())
    assert (
        "average 75.00, average incremental 82.50, learning 80.00, forgetting 10.00, backward transfer -10.00" in words
    )
    assert "over tasks  " not in render(continual())


def test_a_run_that_stopped_says_so() -> None:
    text = render(matrix([["cls"], ["det"]], [{"cls": 90.0}]).to_json())
    assert text.startswith("2 stages     cls > det (only 1 evaluated)\n")
    assert table(text, "task")[3][2:5] == ["-", "-", "-"]


def test_runs_stand_side_by_side() -> None:
    text = compare([("runs/one", continual()), ("runs/two", joint())])
    heading, _, *rows = table(text, "task")
    assert heading[:2] == ["task", "run"]
    assert [row[:5] for row in rows[:3]] == [
        ["cls", "runs/one", "96.50", "89.80", "6.70"],
        ["cls", "runs/two", "96.00", "-", "-"],
        ["det", "runs/one", "46.00", "46.50", "-0.50"],
    ]
    assert "\nrun       forgotten %  delta %  by type %\n" in text
    assert "\nruns/two  294,912     1,000  120,727  12 min 11 s  512.0 MiB     1,234\n" in text
    assert "metrics      cls accuracy (%), det AP (%), depth RMSE (m)" in text


def test_runs_with_different_tasks_can_be_compared() -> None:
    other = matrix([["det"]], [{"det": 47.0}], costs=None).to_json()
    rows = table(compare([("a", continual()), ("b", other)]), "task")[2:]
    assert [row[:2] for row in rows] == [["cls", "a"], ["det", "a"], ["det", "b"], ["depth", "a"]]


def long_names() -> dict[str, Any]:
    names = [f"a-task-with-a-really-long-name-{i}" for i in range(12)]
    records = {name: TaskRecord("cls", "mean-per-class-accuracy", True, 90.0, "%", 10.0) for name in names}
    rows: list[dict[str, float | None]] = [dict.fromkeys(names[: i + 1], 100.0) for i in range(12)]
    counts = dict.fromkeys(names, 12_345_678)
    costs = Costs(Parameters(0, counts, counts, 86_000_000), 2**40, 98765.0, 2**36, 12345.0, 13)
    return matrix([[name] for name in names], rows, records=records, costs=costs).to_json()


@pytest.mark.parametrize("results", [continual(), joint(), long_names()])
def test_reports_fit_80_columns_of_plain_text(results: dict[str, Any]) -> None:
    for text in (render(results), compare([("runs/a-run-with-a-long-name-of-its-own", results), ("b", results)])):
        assert max(len(line) for line in text.split("\n")) <= 80
        assert text.isascii()
        assert not any(line != line.rstrip() for line in text.split("\n"))


def test_a_terminal_gets_colour_and_a_file_does_not() -> None:
    terminal = Console(file=StringIO(), force_terminal=True, width=80, color_system="standard")
    file = Console(file=StringIO(), width=80)
    coloured = render(continual(), terminal)
    assert "\x1b[" in coloured
    assert all(cell in coloured for cell in ("accuracy (%)", "6.70", "0.4712"))
    assert render(continual(), file) == render(continual())
    assert terminal.file.getvalue() == "", "the caller prints"


def test_names_are_no_markup() -> None:
    records = {"[red]x": TaskRecord("cls", "[bold]m", True, None)}
    terminal = Console(file=StringIO(), force_terminal=True, width=80)
    text = render(matrix([["[red]x"]], [{"[red]x": 1.0}], records=records).to_json(), terminal)
    assert "[red]x" in text
    assert "[bold]m" in text


def test_the_summary_is_recomputed_not_read() -> None:
    results = continual()
    results["summary"] = {}
    summary = summary_json(results)
    assert summary == continual()["summary"]
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert render(results) == render(continual())


def test_what_is_no_result_is_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"results\.json: tasks: is missing"):
        render({"format": 1})
    with pytest.raises(DataError, match="runs/b: format"):
        compare([("runs/a", continual()), ("runs/b", {**continual(), "format": 9})])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (native(None, "%"), "-"),
        (native(0.0, "%"), "0.00"),
        (native(0.123456, "m"), "0.1235"),
        (whole(None), "-"),
        (whole(1234567), "1,234,567"),
        (compact(999_999), "999,999"),
        (compact(1_250_001), "1.3 M"),
        (duration(9.96), "10.0 s"),
        (duration(99.96), "1 min 40 s"),
        (duration(3599.6), "1 h 00 min"),
        (duration(7384), "2 h 03 min"),
        (duration(None), "-"),
        (size(1023), "1023 B"),
        (size(1536), "1.5 KiB"),
        (size(5 * 2**40), "5120.0 GiB"),
        (size(None), "-"),
        (shorten("abcdefghij", 10), "abcdefghij"),
        (shorten("abcdefghijk", 10), "abcd..hijk"),
        (shorten("abcdefghijk", 9), "abcd..ijk"),
    ],
)
def test_numbers(text: str, expected: str) -> None:
    assert text == expected


def test_reports_import_no_torch() -> None:
    code = "import sys, mtpeft.reports; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
