"""Which samples a run may see: splits joined, some of many, and splits that stay closed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.letters import Letters

from mtpeft.config import Overrides, load
from mtpeft.data.combined_datasets import Dealt, JoinedSplits, Subsample
from mtpeft.errors import DataError, UsageError
from mtpeft.schedule import Evaluate
from mtpeft.task import Dataset
from mtpeft.training.setup import setup


def names(data: Dataset) -> list[str]:
    return [data[index].name for index in range(len(data))]


def read(data: Dataset) -> str:
    return "".join(names(data))


def test_joined_is_one_after_another() -> None:
    data = JoinedSplits([Letters("abc"), Letters("d"), Letters("ef")])
    assert read(data) == "abcdef" and data.manifest() == {"count": 6, "joined": [{"count": n} for n in (3, 1, 2)]}
    with pytest.raises(DataError, match="other classes"):
        JoinedSplits([Letters("a"), Letters("b", ("b",))])


def test_drawn_is_decided_by_the_seed_alone() -> None:
    whole = Letters("abcdefghijklmnopqrstuvwxyz")
    drawn = Subsample(whole, 7, seed=3)
    assert len(set(read(drawn))) == 7 and read(drawn) == "".join(sorted(read(drawn)))
    assert read(drawn) == read(Subsample(whole, 7, seed=3)) != read(Subsample(whole, 7, seed=4))
    assert drawn.manifest()["drawn"] == drawn.indices


@given(count=st.integers(1, 60), parts=st.integers(1, 60), seed=st.integers(0, 9))
def test_dealt_parts_are_disjoint_and_all_of_it(count: int, parts: int, seed: int) -> None:
    whole = Letters("".join(chr(0x4E00 + index) for index in range(count)))
    dealt = [Dealt(whole, part, part, parts, seed).indices for part in range(1, parts + 1)]
    first = parts // 2
    assert sorted(index for part in dealt[:first] for index in part) == Dealt(whole, 1, first, parts, seed).indices
    assert sorted(index for part in dealt for index in part) == list(range(count))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


def test_parts_are_decided_by_the_seed_alone() -> None:
    whole = Letters("abcdefghijklmnopqrstuvwxyz")
    first, again, other = (read(Dealt(whole, 1, 1, 3, seed)) for seed in (3, 3, 4))
    assert first == again != other and first != "abcdefghi"


def test_a_stream_of_tasks_meets_each_sample_of_its_data_once() -> None:
    settings = [f"tasks.{name}.part=[{number},3]" for number, name in enumerate(("one", "two", "three"), 1)]
    tasks = "one=colours,two=colours,three=colours"
    run = setup(load(None, Overrides({"--tasks": tasks, "--method": "toy", "--backbone": "tiny"}, settings)))
    met = [sample for name in run.tasks for sample in names(run.dataset(name, "train"))]
    whole = run_with().dataset("colours", "train")
    assert sorted(met) == sorted(names(whole))
    assert [len(run.dataset(name, "test")) for name in run.tasks] == [len(run_with().dataset("colours", "test"))] * 3


@pytest.mark.parametrize("part", ["[3,2]", "[1,1000]", "[2,1,3]", "[1,4,3]"])
def test_a_part_there_is_not_is_refused(part: str) -> None:
    with pytest.raises(UsageError, match="is none of"):
        run_with(f"tasks.colours.part={part}").dataset("colours", "train")


def run_with(*settings: str):
    return setup(
        load(None, Overrides({"--tasks": "colours", "--method": "toy", "--backbone": "tiny", "--steps": 2}, settings))
    )


def test_some_samples_of_train_and_all_of_the_others() -> None:
    whole, few = run_with(), run_with("tasks.colours.samples=5")
    assert len(few.dataset("colours", "train")) == 5 < len(whole.dataset("colours", "train"))
    assert len(few.dataset("colours", "test")) == len(whole.dataset("colours", "test"))


def test_trained_on_both_there_is_nothing_to_validate() -> None:
    plain, both = run_with(), run_with('train_on=["train", "val"]')
    assert len(both.dataset("colours", "train")) == sum(
        len(plain.dataset("colours", split)) for split in ("train", "val")
    )
    with pytest.raises(UsageError, match="does not open val"):
        both.dataset("colours", "val")
    assert [event.split for event in both.events() if isinstance(event, Evaluate)] == ["test"]


def test_a_run_that_chooses_evaluates_on_val_alone_and_once() -> None:
    run = run_with("evaluate_on=val")
    with pytest.raises(UsageError, match="does not open test"):
        run.dataset("colours", "test")
    assert [event for event in run.events() if isinstance(event, Evaluate)] == [Evaluate(0, ("colours",), split="val")]
    best = run_with("evaluate_on=val", "output.keep=best")
    assert sum(isinstance(event, Evaluate) for event in best.events()) == 2, "the best is chosen before the end"


@pytest.mark.parametrize(
    ("setting", "message"),
    [('train_on=["val"]', "has no train"), ('train_on=["train", "test"]', "train_on"), ("evaluate_on=train", "val")],
)
def test_splits_that_make_no_sense(setting: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run_with(setting)


def test_what_is_trained_on_measures_nothing() -> None:
    with pytest.raises(UsageError, match="both name val"):
        run_with('train_on=["train", "val"]', "evaluate_on=val")
