"""What validation decides where tasks are measured in different units, and where lower is better."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import training_toy
from support.training_toy import config

from mtpeft.files import parse
from mtpeft.task import Score
from mtpeft.training.setup import setup
from mtpeft.training.validation import Best, Validation, improvement


@dataclass
class Error(training_toy.Colours):
    """The same task, measured by an error."""

    metric_name: ClassVar[str] = "error"
    unit: ClassVar[str] = "m"
    higher_is_better: ClassVar[bool] = False


@pytest.fixture
def validation(tmp_path, monkeypatch) -> Validation:
    """Of a run whose task ``a`` is scored in percent and ``b`` by an error; keeps names instead of weights."""
    run = setup(config(tmp_path / "run", "output.keep=best", "output.patience=2"))
    run.tasks["b"] = Error()
    found = Validation(run)
    found.begin()
    found.kept = []
    monkeypatch.setattr(found, "keep", found.kept.append)
    return found


def scores(a: float | None, b: float | None) -> dict[str, Score]:
    return {"a": Score(a, 1), "b": Score(b, 1)}


def test_the_smallest_error_is_the_best(validation):
    for value in (0.5, 0.7, 0.4):
        validation.update({"b": Score(value, 1)})
    assert validation.best.tasks == {"b": -0.4}
    assert validation.kept == ["b", "_stage", "b", "_stage"]


def test_a_small_unit_weighs_as_much_as_a_large_one(validation):
    """A fifth less error is more than one point of 60, whatever the units are."""
    validation.update(scores(60.0, 0.50))
    assert not validation.update(scores(59.0, 0.40)) and validation.best.stage == {"a": 59.0, "b": -0.40}
    assert not validation.update(scores(65.0, 0.60)) and validation.best.stage == {"a": 59.0, "b": -0.40}
    assert validation.best.waited == 1 and validation.update(scores(59.0, 0.40))


def test_a_score_that_is_undefined_counts_as_the_worst(validation):
    validation.update(scores(50.0, None))
    validation.update(scores(40.0, 0.9))
    assert validation.best.stage == {"a": 40.0, "b": -0.9}
    validation.update(scores(90.0, None))
    assert validation.best.stage == {"a": 40.0, "b": -0.9}


def test_nothing_defined_at_first_is_no_obstacle(validation):
    validation.update(scores(None, None))
    assert validation.best.stage == {} and validation.best.tasks == {}
    validation.update(scores(0.0, None))
    assert validation.best.stage == {"a": 0.0}


def test_its_state_is_restored(validation):
    validation.update(scores(50.0, 0.9))
    validation.update(scores(10.0, 0.9))
    kept = json.loads(json.dumps(asdict(validation.best)))
    validation.begin()
    assert validation.best == Best()
    assert parse(Best, kept, "state") == Best({"a": 50.0, "b": -0.9}, {"a": 50.0, "b": -0.9}, 1)


values = st.dictionaries(st.sampled_from("abc"), st.floats(-100, 100), max_size=3)


@given(values, values)
def test_improvement_is_the_reverse_of_its_reverse(before, after):
    assert improvement(before, after) == -improvement(after, before)
    assert improvement(before, before) == 0


@given(values, values, st.sampled_from([0.25, 2.0, 64.0]))
def test_improvement_does_not_depend_on_units(before, after, factor):
    scaled = [{name: factor * value for name, value in one.items()} for one in (before, after)]
    assert improvement(*scaled) == pytest.approx(improvement(before, after))
