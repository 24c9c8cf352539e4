"""What only a later stage uses is tried before the first update, and the run is as if it had not been."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from support import training_toy
from support.training_toy import Colours, config

from mtpeft import plugins
from mtpeft.api import hookimpl
from mtpeft.errors import MtpeftError
from mtpeft.training.dry_run import rehearse
from mtpeft.training.preflight import check_training
from mtpeft.training.session import Session
from mtpeft.training.setup import setup


@dataclass
class Fragile(Colours):
    """Fails where its setting says."""

    fails: str = ""

    def head(self, info, classes):
        if self.fails == "head":
            raise ValueError("width is -1")
        return super().head(info, classes)

    def loss(self, head, outputs, targets):
        if self.fails == "loss":
            raise IndexError("no such class")
        return super().loss(head, outputs, targets)


class Plugin:
    @hookimpl
    def register_tasks(self):
        return {"fragile": "test_training_preflight:Fragile"}


@pytest.fixture(autouse=True)
def fragile(toy_plugin, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    plugins.manager().register(Plugin(), "fragile")


@pytest.mark.parametrize("start", [lambda c: Session.start(c), rehearse], ids=["train", "dry run"])
@pytest.mark.parametrize("schedule", ["sequential", "joint"])
@pytest.mark.parametrize(("fails", "reason"), [("head", "width is -1"), ("loss", "no such class")])
def test_a_setting_of_a_later_stage_is_found_before_anything_trains(tmp_path, fails, reason, schedule, start):
    run = config(tmp_path / "run", f"tasks.b.fails={fails}", tasks="a=colours,b=fragile", schedule=schedule)
    with pytest.raises(MtpeftError, match=rf'task "b" cannot be trained with these settings: .*{reason}'):
        start(run)
    assert list(tmp_path.iterdir()) == []
    Session.start(config(tmp_path / "run", tasks="a=colours,b=fragile", schedule=schedule))


def tensors(run):
    owned = {f"{owner} {name}": t for owner in run.host.owners() for name, t in run.host.tensors(owner).items()}
    return {name: t.detach().clone() for name, t in (owned | run.backbone.module.state_dict()).items()}


@pytest.mark.parametrize("method", ["toy@shared", "toy@task", "lora@shared+adaptformer@task", "bitfit@shared"])
@pytest.mark.parametrize("schedule", ["sequential", "joint"])
def test_the_check_leaves_the_run_as_it_was(tmp_path, method, schedule):
    run = setup(config(tmp_path / "run", "balance.name=uw", method=method, schedule=schedule))
    before, random = tensors(run), torch.get_rng_state()
    check_training(run)
    after = tensors(run)
    assert run.host.tasks == [] and not list(run.host.heads)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(task.seen == 0 for task in run.tasks.values())


def test_tasks_of_a_group_grow_one_head_in_the_check_too(tmp_path):
    names = [f"tasks.{name}.group=all" for name in "ab"]
    run = setup(config(tmp_path / "run", *names, method="toy@shared", schedule="sequential"))
    check_training(run)
    assert not list(run.host.heads)


def test_what_a_balancer_cannot_do_is_found(tmp_path, monkeypatch):
    from mtpeft.balancing import Balancer

    run = setup(config(tmp_path / "run"))
    monkeypatch.setattr(type(run.balancer), "combine", lambda self, losses: {}["weights"])
    assert isinstance(run.balancer, Balancer)
    with pytest.raises(MtpeftError, match="stage 1 cannot be trained"):
        check_training(run)


assert training_toy
