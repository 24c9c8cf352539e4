"""A task is isolated if no later training reaches what acts for it: who acts, and who trained when, say so."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.training_toy import Toy, config

from mtpeft.evaluation import ResultMatrix
from mtpeft.training.session import Session

TASKS = "a=colours,b=colours,c=colours"


def trained(folder, *settings: str, source=None, **choices: str) -> ResultMatrix:
    given = {"tasks": TASKS, "schedule": "sequential", **choices}
    session = Session.start(config(folder, "schedule.steps=1", *settings, **given), source=source)
    return session.train()


@pytest.mark.parametrize(
    ("method", "expected"), [("toy@task", ("a", "b", "c")), ("toy@shared", ()), ("toy@shared+lora@task", ())]
)
@pytest.mark.parametrize("schedule", ["sequential", "joint"])
def test_shared_parts_isolate_nobody(tmp_path, method, schedule, expected):
    assert trained(tmp_path / "run", method=method, schedule=schedule).costs.isolated == expected


def test_a_method_without_shared_parts_may_still_train_what_others_use(tmp_path, monkeypatch):
    """As in O-LoRA: the parts of every task seen act for every task, those of tasks yet to come included."""
    monkeypatch.setattr(Toy, "owners", lambda self, task, seen: tuple(seen))
    matrix = trained(tmp_path / "run", method="toy@task")
    assert matrix.costs.isolated == ()
    assert not matrix.to_json()["summary"]["isolated"]


def test_parts_of_earlier_tasks_that_train_no_more_disturb_nobody(tmp_path, monkeypatch):
    """As in a progressive network: a task uses its own parts and those before it."""
    upto = lambda self, task, seen: tuple(seen) if task is None else tuple(seen[: seen.index(task) + 1])  # noqa: E731
    monkeypatch.setattr(Toy, "owners", upto)
    assert trained(tmp_path / "run", method="toy@task").costs.isolated == ("a", "b", "c")


def test_a_growing_head_isolates_nobody(tmp_path):
    settings = [f"tasks.{name}.group=g" for name in "abc"] + [f"tasks.{name}.degenerate=allow" for name in "abc"]
    names = [f"tasks.{name}.names=['{colour}']" for name, colour in zip("abc", ("red", "green", "blue"), strict=True)]
    assert trained(tmp_path / "run", *settings, *names, method="linear-probe").costs.isolated == ()


def test_a_task_taken_over_is_isolated_only_if_it_was(tmp_path):
    trained(tmp_path / "own", tasks="a=colours,b=colours", method="toy@task")
    later = trained(tmp_path / "own2", tasks="c=colours", method="toy@task", source=tmp_path / "own")
    assert later.costs.isolated == ("a", "b", "c")
    trained(tmp_path / "shared", tasks="a=colours,b=colours", method="toy@shared")
    later = trained(tmp_path / "shared2", tasks="c=colours", method="toy@shared", source=tmp_path / "shared")
    assert later.costs.isolated == ()


def test_costs_of_stages_go_on_over_runs(tmp_path):
    first = trained(tmp_path / "first", tasks="a=colours,b=colours", method="toy@task")
    second = trained(tmp_path / "second", tasks="c=colours", method="toy@task", source=tmp_path / "first")
    assert [stage.tasks for stage in second.costs.stages] == [("a",), ("b",), ("c",)]
    assert second.costs.stages[:2] == first.costs.stages
    assert replace(second.costs.stages[2], seconds=0, cpu_seconds=0, images_per_second=0).updates == 1
