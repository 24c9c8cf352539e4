"""A task of many classes as a sequence of tasks with some."""

from __future__ import annotations

import json

import pytest
from support.training_toy import config

from mtpeft.cli import main
from mtpeft.config import Overrides, load
from mtpeft.data.split_classes import LEGACY_SEED, legacy_permutation, split_classes
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


def test_what_does_not_divide_makes_the_first_parts_larger() -> None:
    def sizes(split: int) -> list[int]:
        parts = split_classes(digits(f"tasks.cls.split={split}")).tasks
        return [len(task.settings["classes"]) for task in parts.values()]

    assert sizes(3) == [4, 3, 3] and sizes(4) == [3, 3, 2, 2] and sizes(10) == [1] * 10


def _order(*settings: str) -> list[str]:
    parts = split_classes(digits("tasks.cls.split=2", *settings)).tasks
    return [name for task in parts.values() for name in task.settings["classes"]]


def test_the_shuffled_order_is_what_it_was() -> None:
    for order in ((), ('tasks.cls.class_order="shuffled"',)):
        assert _order("class_order_seed=3", *order) == [str(digit) for digit in (1, 5, 6, 0, 9, 4, 7, 2, 8, 3)]


def test_the_order_of_published_tables() -> None:
    assert legacy_permutation(100, LEGACY_SEED)[:10] == [68, 56, 78, 8, 23, 84, 90, 65, 74, 76]
    legacy = [str(index) for index in legacy_permutation(10, LEGACY_SEED)]
    assert _order("tasks.cls.class_order=numpy") == legacy == _order("tasks.cls.class_order=numpy", "seed=7")
    other = [str(index) for index in legacy_permutation(10, 7)]
    assert _order("tasks.cls.class_order=numpy", "class_order_seed=7") == other != legacy


def test_the_natural_and_a_written_order() -> None:
    natural = [str(digit) for digit in range(10)]
    assert _order("tasks.cls.class_order=natural") == natural
    written = natural[::-1]
    assert _order(f"tasks.cls.class_order={json.dumps(written)}") == written


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (["0", "1"], 'does not name "2"'),
        ([*map(str, range(10)), "10"], 'names "10", which is no class'),
        ([*map(str, range(10)), "3"], 'names "3" twice'),
        ("alphabetic", "natural"),
    ],
)
def test_a_written_order_names_every_class_once(order, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        _order(f"tasks.cls.class_order={json.dumps(order)}")
    assert said in f"{caught.value} {caught.value.hint}"


def test_the_background_belongs_to_every_part_and_is_not_counted() -> None:
    whole = load(None, Overrides({"--tasks": "seg", "--method": "linear-probe"}, ["tasks.seg.split=[6,4]"]))
    parts = [task.settings["classes"] for task in split_classes(whole).tasks.values()]
    assert [part[0] for part in parts] == ["background"] * 2 and [len(part) for part in parts] == [7, 5]
    assert sorted(parts[0][1:] + parts[1][1:]) == [str(digit) for digit in range(10)]


@pytest.mark.parametrize("split", ["[5,4]", "11"])
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
