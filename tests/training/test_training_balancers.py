"""Balancers of three published kinds in real trainings: told tasks and losses, called after the step, exact on resume.

None of them can be written on a contract that gives `aggregate` the rows alone and has no hook after the step.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from support.balancers import Famo, GradNorm, GradVac, pairs
from support.training_toy import config

from mtpeft import plugins
from mtpeft.api import hookimpl
from mtpeft.schedule import Batch, Begin, End, Evaluate, Event, Update
from mtpeft.training.loop import Loop
from mtpeft.training.progress import Quiet
from mtpeft.training.session import Session
from mtpeft.training.setup import setup

KINDS = {"famo": Famo, "grad-norm": GradNorm, "grad-vac": GradVac}


class Plugin:
    @hookimpl
    def register_balancers(self) -> dict[str, str]:
        return {name: f"support.balancers:{kind.__name__}" for name, kind in KINDS.items()}


@pytest.fixture(autouse=True)
def balancers(toy_plugin: None) -> None:
    plugins.manager().register(Plugin(), "balancers")


def settings(name: str, *more: str) -> tuple[str, ...]:
    return (f"balance.name={name}", "output.save_every=1", *more)


def state(session: Session) -> dict[str, torch.Tensor]:
    parts = {f"shared/{name}": t.detach().clone() for name, t in session.run.host.tensors("shared").items()}
    return parts | {f"balancer/{name}": t.clone() for name, t in session.run.balancer.state().items()}


@pytest.mark.parametrize("name", KINDS)
def test_it_learns_from_every_update_and_resumes_to_the_bit(tmp_path, name):
    choices = {"method": "toy@shared", "schedule": "joint", "tasks": "a=colours,b=colours,c=colours"}
    whole = Session.start(config(tmp_path / "whole", *settings(name), **choices))
    whole.train()
    assert len({float(value) for value in whole.run.balancer.state().values()}) > 1

    cut = Session.start(config(tmp_path / "cut", *settings(name), **choices))
    cut.loop.after = lambda event: _stop_after(cut, event, 3)
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    again = Session.resume(config(tmp_path / "cut", *settings(name), **choices))
    again.train()
    before, after = state(whole), state(again)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def _stop_after(session: Session, event: Event, updates: int) -> None:
    session.after(event)
    if session.loop.at.updates == updates and isinstance(event, Update):
        raise KeyboardInterrupt


def test_the_losses_after_the_step_are_those_of_the_same_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda x, *rest, **more: x)
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, x: x)
    for accumulate in (1, 3):
        more = ("optimizer.lr=1e-12", "optimizer.weight_decay=0.0", f"schedule.accumulate={accumulate}")
        folder = tmp_path / str(accumulate)
        session = Session.start(config(folder, *settings("famo", *more), method="toy@shared"))
        session.train()
        assert len(session.run.balancer.pairs) == 6
        for losses, again in session.run.balancer.pairs:  # the step moved nothing, so the same samples say the same
            assert again == pytest.approx(losses, rel=1e-5)


def test_without_need_nothing_is_run_again(tmp_path, monkeypatch):
    monkeypatch.setattr(Famo, "needs_losses_again", False)
    given = []
    monkeypatch.setattr(Famo, "after_step", lambda self, losses, again: given.append((set(losses), dict(again))))
    session = Session.start(config(tmp_path / "run", *settings("famo"), method="toy@shared"))
    given.clear()  # the rehearsal was asked too
    session.train()
    assert given == [({"a", "b"}, {})] * 6


def test_what_is_known_of_a_task_survives_stages_without_it(tmp_path):
    stages = 'schedule.stages=[["a","b"],["c"]]'
    choices = {"method": "toy@shared", "schedule": "sequential", "tasks": "a=colours,b=colours,c=colours"}
    run = setup(config(tmp_path / "run", *settings("grad-norm", stages), **choices))
    loop, kept = Loop(run, Quiet()), {}
    for event in run.events():
        loop.do(event)
        if isinstance(event, End) and event.stage == 0:
            kept = {name: value.clone() for name, value in run.balancer.state().items()}
    after = run.balancer.state()
    assert {"first/a", "first/b"} <= kept.keys()
    assert all(torch.equal(kept[name], after[name]) for name in kept) and "first/c" in after


def changing(stage: int, steps: int) -> Iterator[Event]:
    """Updates whose two batches hold different tasks, other ones each time."""
    yield Begin(stage, ("a", "b", "c"), steps)
    for step in range(steps):
        first, second = ({"a": 4}, {"b": 4}) if step % 2 else ({"c": 2, "a": 4}, {"b": 6})
        whole = first | second
        yield Batch(first, whole)
        yield Batch(second, whole)
        yield Update(step)
    yield End(stage, ("a", "b", "c"))
    yield Evaluate(stage, ("a", "b", "c"))


def test_rows_are_named_where_the_tasks_change_from_update_to_update(tmp_path, monkeypatch):
    told, aggregate = [], GradVac.aggregate

    def listening(self, jacobian, tasks, losses):
        told.append((tuple(tasks), tuple(losses), len(jacobian)))
        return aggregate(self, jacobian, tasks, losses)

    monkeypatch.setattr(GradVac, "aggregate", listening)
    choices = {"method": "toy@shared", "schedule": "joint", "tasks": "a=colours,b=colours,c=colours"}
    run = setup(config(tmp_path / "run", *settings("grad-vac"), **choices))
    run.schedule.events = lambda sizes, seed: changing(0, 4)
    Loop(run, Quiet()).train()
    three, two = ("c", "a", "b"), ("a", "b")
    assert told == [(three, three, 3), (two, two, 2)] * 2
    assert run.balancer.targets.keys() == pairs(three)
    assert run.matrix.value(0, "c") is not None


def test_a_gradient_balancer_with_nothing_shared_is_not_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(GradVac, "aggregate", lambda *given: pytest.fail("there is no row"))
    session = Session.start(config(tmp_path / "run", *settings("grad-vac"), method="toy@task"))
    assert session.train().value(0, "a") is not None
