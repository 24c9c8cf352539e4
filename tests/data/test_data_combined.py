"""Which samples a run may see: splits joined, some of many, and splits that stay closed."""

from __future__ import annotations

import pytest
from support.letters import Letters

from mtpeft.config import Overrides, load
from mtpeft.data.combined_datasets import JoinedSplits, Subsample
from mtpeft.errors import DataError, UsageError
from mtpeft.schedule import Evaluate
from mtpeft.task import Dataset
from mtpeft.training.run import setup


def read(data: Dataset) -> str:
    return "".join(data[index].name for index in range(len(data)))


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
