"""A task of many classes as a sequence of tasks with some."""

from __future__ import annotations

import json

import pytest
from support.training_toy import config

from mtpeft.cli import main
from mtpeft.config import Overrides, load
from mtpeft.data.split_classes import split_classes
from mtpeft.errors import UsageError


def digits(*settings: str):
    return load(None, Overrides({"--tasks": "cls", "--method": "linear-probe"}, settings))


def test_parts_divide_the_classes_and_share_a_head() -> None:
    parts = split_classes(digits("tasks.cls.split=5", "class_order_seed=3")).tasks
    assert list(parts) == [f"cls-{number}" for number in range(1, 6)]
    assert {task.settings["group"] for task in parts.values()} == {"cls"}
    classes = [name for task in parts.values() for name in task.settings["classes"]]
    assert sorted(classes) == [str(digit) for digit in range(10)] and classes != sorted(classes)


def test_the_class_order_is_its_own_seeds() -> None:
    def order(*settings: str) -> list[list[str]]:
        return [
            task.settings["classes"] for task in split_classes(digits("tasks.cls.split=2", *settings)).tasks.values()
        ]

    assert order("class_order_seed=1", "seed=1") == order("class_order_seed=1", "seed=2") != order("class_order_seed=2")


def test_parts_of_different_sizes() -> None:
    parts = split_classes(digits("tasks.cls.split=[6,3,1]")).tasks
    assert [len(task.settings["classes"]) for task in parts.values()] == [6, 3, 1]


@pytest.mark.parametrize("split", ["3", "[5,4]", "11"])
def test_a_split_must_divide(split: str) -> None:
    with pytest.raises(UsageError, match="does not divide 10 classes") as caught:
        split_classes(digits(f"tasks.cls.split={split}"))
    assert "split = [50, 10, 10]" in caught.value.hint


def test_no_part_is_empty() -> None:
    with pytest.raises(UsageError, match=r"split = \[10, 0\] .* greater than or equal to 1"):
        split_classes(digits("tasks.cls.split=[10,0]"))


def test_without_a_split_nothing_changes(tmp_path) -> None:
    whole = config(tmp_path / "run")
    assert split_classes(whole) == whole


def test_a_sequence_runs_is_written_out_and_resumes(tmp_path) -> None:
    out = tmp_path / "run"
    line = ["train", "--tasks", "cls", "--method", "bitfit", "--schedule", "sequential", "--steps", "1"]
    line += ["--set", "tasks.cls.split=2", "--set", "tasks.cls.samples=8", "--out", str(out), "--seed", "1"]
    assert main(line) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["stages"] == [["cls-1"], ["cls-2"]] and len(results["matrix"]) == 3
    assert main([*line, "--resume"]) == 0
