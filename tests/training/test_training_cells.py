"""The cells and costs of continual learning, filled by real runs: before a stage, inside it, and what it cost."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from time import sleep

import pytest
import torch
from support.training_toy import Toy, config
from torch import Tensor

from mtpeft.api import Context, Routine
from mtpeft.evaluation import summarize
from mtpeft.files import parse
from mtpeft.reports import render
from mtpeft.schedule import End, Update
from mtpeft.training.position import Position, Spent
from mtpeft.training.run_files import read_results
from mtpeft.training.session import Session

TASKS = "a=colours,b=colours,c=colours"
IMAGE = 3 * 32 * 32
"""Bytes that a kept sample counts."""
CHOICES = {"tasks": TASKS, "schedule": "sequential", "method": "toy@shared"}


class Keeping(Routine[Toy]):
    """Keeps a sample and a row of statistics for each stage, and takes its time."""

    rows = 0

    def begin_stage(self, context: Context) -> None:
        sleep(0.05)

    def settle(self, context: Context) -> None:
        sleep(0.05)

    def end_stage(self, context: Context) -> None:
        sleep(0.05)
        self.rows += 1
        self.memory.add((context.tasks[0], 0), logits=torch.zeros(3))

    def state(self) -> dict[str, Tensor]:
        return {"rows": torch.zeros(self.rows, 5)}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.rows = len(state["rows"])


@pytest.fixture
def keeping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Toy, "routine", lambda self: Keeping(self))


def tensors(session: Session) -> dict[str, Tensor]:
    host = session.run.host
    parts = {f"{owner}/{name}": t for owner in host.owners() for name, t in host.tensors(owner).items()}
    return {name: t.detach().clone() for name, t in (parts | dict(host.heads.state_dict())).items()}


def trained(folder, *settings: str, **choices: str) -> Session:
    session = Session.start(config(folder, *settings, **{**CHOICES, **choices}))
    session.train()
    return session


def test_every_stage_says_what_it_cost(tmp_path, keeping):
    session = trained(tmp_path / "run", "schedule.steps=3")
    costs, count = session.run.matrix.costs, session.run.host.count()
    assert [stage.tasks for stage in costs.stages] == [("a",), ("b",), ("c",)]
    assert [stage.parameters for stage in costs.stages] == [count.shared + count.heads[name] for name in "abc"]
    assert [stage.updates for stage in costs.stages] == [3, 3, 3]
    assert [stage.images for stage in costs.stages] == [18, 18, 18]
    assert [stage.statistics_bytes for stage in costs.stages] == [20, 40, 60]
    assert [stage.memory_bytes for stage in costs.stages] == [(12 + IMAGE) * stage for stage in (1, 2, 3)]
    assert costs.memory_bytes == 3 * (12 + IMAGE) and costs.statistics_bytes == 60
    assert all(stage.seconds > 0.15 for stage in costs.stages)  # three hooks of 0.05 s
    assert all(stage.images_per_second > stage.images / stage.seconds for stage in costs.stages)
    assert sum(stage.seconds for stage in costs.stages) == pytest.approx(costs.seconds)
    assert read_results(tmp_path / "run").costs == costs


@pytest.mark.parametrize("moment", [(Update, 4), (End, 2)])
def test_costs_of_stages_survive_resume(tmp_path, keeping, moment):
    kind, number = moment
    whole = trained(tmp_path / "whole", "schedule.steps=3").run.matrix.costs
    cut = Session.start(config(tmp_path / "cut", "schedule.steps=3", **CHOICES))
    met = []

    def stop(event):
        met.extend([event] if isinstance(event, kind) else [])
        if len(met) == number:
            raise KeyboardInterrupt

    cut.loop.after = stop
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    again = Session.resume(config(tmp_path / "cut", "schedule.steps=3", **CHOICES)).train().costs
    unmeasured = {"seconds": None, "cpu_seconds": None, "images_per_second": None}
    assert [replace(s, **unmeasured) for s in again.stages] == [replace(s, **unmeasured) for s in whole.stages]
    assert all(stage.seconds > 0.15 for stage in again.stages)


def test_a_position_survives_json():
    at = Position(stage=2, tasks=("a",), seen=("a",), updates=7, before=Spent(3, 4, 5.0, 6.0, 7.0))
    assert parse(Position, json.loads(json.dumps(asdict(at))), "position.json") == at
    assert at.spent().updates == 4


def test_tasks_are_evaluated_before_their_stage_when_asked_and_nothing_else_changes(tmp_path):
    plain = trained(tmp_path / "plain", "schedule.steps=20")
    asked = trained(tmp_path / "asked", "schedule.steps=20", "schedule.evaluate_before=true")
    before, after = tensors(plain), tensors(asked)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    cells = asked.run.matrix.cells
    assert list(plain.run.matrix.cells) == [(0, "a"), (1, "a"), (1, "b"), (2, "a"), (2, "b"), (2, "c")]
    assert set(cells) - set(plain.run.matrix.cells) == {(0, "b"), (1, "c")}
    assert all(plain.run.matrix.cells[key] == cells[key] for key in plain.run.matrix.cells)
    summary = summarize(asked.run.matrix)
    assert summarize(plain.run.matrix)["forward_transfer"] is None
    records = asked.run.matrix.tasks
    expected = [summary["tasks"][name]["before"] - records[name].floor for name in "bc"]
    assert summary["forward_transfer"] == pytest.approx(sum(expected) / 2)
    text = render(asked.run.matrix.to_json())
    assert "forward transfer" in text and "untrained" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_run_that_looks_ahead_resumes_to_the_same_results(tmp_path):
    settings = ("schedule.steps=2", "schedule.evaluate_before=true", "schedule.probe_every=1", "output.save_every=1")
    whole = trained(tmp_path / "whole", *settings)
    for number in (3, 9, 15):
        folder, met = tmp_path / f"cut-{number}", []
        cut = Session.start(config(folder, *settings, **CHOICES))

        def stop(event, cut=cut, met=met, number=number):
            met.append(event)
            cut.after(event)
            if len(met) == number:
                raise KeyboardInterrupt

        cut.loop.after = stop
        with pytest.raises(KeyboardInterrupt):
            cut.train()
        again = Session.resume(config(folder, *settings, **CHOICES))
        again.train()
        one, other = whole.run.matrix.to_json(), again.run.matrix.to_json()
        assert all(one[part] == other[part] for part in ("tasks", "matrix", "probes"))
        assert all(torch.equal(t, tensors(whole)[name]) for name, t in tensors(again).items())


def test_inside_a_later_stage_all_tasks_seen_are_probed_when_asked(tmp_path):
    plain = trained(tmp_path / "plain", "schedule.steps=4")
    asked = trained(tmp_path / "asked", "schedule.steps=4", "schedule.probe_every=2")
    assert all(torch.equal(t, tensors(plain)[name]) for name, t in tensors(asked).items())
    probes = [(stage, update, task) for stage, seen in ((1, "ab"), (2, "abc")) for update in (2, 4) for task in seen]
    assert list(asked.run.matrix.probes) == probes
    assert summarize(plain.run.matrix)["worst_average"] is None
    assert summarize(asked.run.matrix)["worst_average"] is not None
    assert "worst" in render(asked.run.matrix.to_json())


def test_a_joint_run_and_runs_alone_are_references_of_a_sequential_one(tmp_path, capsys):
    from mtpeft.commands import report

    trained(tmp_path / "run", "schedule.steps=2")
    trained(tmp_path / "joint", "schedule.steps=2", schedule="joint")
    for name in "abc":
        trained(tmp_path / name, "schedule.steps=2", tasks=f"{name}=colours")
    report.run([tmp_path / "run"], baselines=[tmp_path / n for n in ("joint", "a", "b", "c")], json=True)
    summary = json.loads(capsys.readouterr().out)
    assert summary["joint_average"] is not None and summary["delta"] is not None
    assert summary["joint_intransigence"] is not None
