from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from support.training_toy import config
from torch import nn

from mtpeft.errors import UsageError
from mtpeft.plugins import create
from mtpeft.training.optimizer import build_optimizer, clip, rate, set_rate
from mtpeft.training.session import Session
from mtpeft.training.setup import setup


def test_rate_is_linear_then_half_a_cosine():
    factors = [rate(step, 10, 4) for step in range(10)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4:] == pytest.approx([0.5 * (1 + math.cos(math.pi * k / 6)) for k in range(6)])


def test_rate_without_warm_up_and_with_nothing_else():
    assert rate(0, 5, 0) == 1.0
    assert [rate(step, 2, 2) for step in range(2)] == [0.5, 1.0]


def test_only_matrices_decay_and_each_parameter_has_its_own_peak():
    parameters = {
        "w": nn.Parameter(torch.ones(2, 2)),
        "b": nn.Parameter(torch.ones(2)),
        "h": nn.Parameter(torch.ones(2, 2)),
    }
    rates = {"w": 0.1, "b": 0.1, "h": 0.2}
    optimizer = build_optimizer(create("optimizers", "adamw", {}, "optimizer"), parameters, rates, weight_decay=0.5)
    set_rate(optimizer, 0.5)
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert parameters["w"].flatten().tolist() == pytest.approx([1 - 0.05 * 0.5] * 4)
    assert parameters["h"].flatten().tolist() == pytest.approx([1 - 0.1 * 0.5] * 4)
    assert parameters["b"].tolist() == [1.0, 1.0]


def test_clip_scales_all_gradients_together():
    parameters = {
        "a": nn.Parameter(torch.zeros(1)),
        "b": nn.Parameter(torch.zeros(1)),
        "c": nn.Parameter(torch.zeros(1)),
    }
    parameters["a"].grad, parameters["b"].grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert clip(parameters, 0.0) == pytest.approx(5.0)
    assert parameters["a"].grad.item() == 3.0
    assert clip(parameters, 1.0) == pytest.approx(5.0)
    assert parameters["a"].grad.item() == pytest.approx(0.6, rel=1e-5)
    assert parameters["c"].grad is None


def test_an_optimizer_of_nothing_can_step():
    optimizer = build_optimizer(create("optimizers", "adamw", {}, "optimizer"), {}, {}, weight_decay=0.1)
    set_rate(optimizer, 1.0)
    optimizer.step()


def test_heads_are_no_slower_than_a_thousandth_unless_told(tmp_path, monkeypatch):
    run = setup(config(tmp_path / "run"))
    method = next(iter(run.host.methods.values()))
    monkeypatch.setattr(type(method), "declares", replace(method.declares, learning_rate=1e-5))
    assert run.learning_rate("shared/toy/site/value") == 1e-5
    assert run.learning_rate("head:toy/weight") == run.learning_rate("balancer:0") == 2e-3


@pytest.mark.parametrize(
    ("settings", "part", "head"), [(["lr=0.5"], 0.5, 0.5), (["lr=0.5", "head_lr=0.25"], 0.5, 0.25)]
)
def test_the_configuration_overrides_learning_rates(tmp_path, settings, part, head):
    run = setup(config(tmp_path / "run", *(f"optimizer.{s}" for s in settings)))
    assert run.learning_rate("shared/toy/site/value") == part
    assert run.learning_rate("head:toy/weight") == head


def test_a_recipe_chooses_the_optimizer(tmp_path):
    sgd = ("optimizer.name=sgd", "optimizer.settings.momentum=0.5", "optimizer.weight_decay=0.25")
    session = Session.start(config(tmp_path / "run", *sgd))
    session.train()
    optimizer = session.loop.stage.optimizer
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults["momentum"] == 0.5
    assert {group["weight_decay"] for group in optimizer.param_groups} <= {0.0, 0.25}


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        (["optimizer.name=sdg"], 'there is no optimizer "sdg"', 'did you mean "sgd"?'),
        (["optimizer.settings.beta=1"], "there is no setting optimizer.settings.beta", "betas"),
        (["optimizer.settings.betas=[0.9]"], "it should have more items", "takes [a number from 0 to below 1"),
    ],
)
def test_a_wrong_optimizer_is_named_before_a_folder_is_there(settings, message, hint, tmp_path):
    with pytest.raises(UsageError) as error:
        Session.start(config(tmp_path / "run", *settings))
    assert message in error.value.message
    assert hint in error.value.hint
    assert not (tmp_path / "run").exists()


def test_a_method_says_how_fast_each_of_its_tensors_learns(tmp_path):
    """LoRA+: ``B`` learns 16 times faster than ``A``."""
    run = setup(config(tmp_path / "run", "methods.lora.b_rate=16", "optimizer.lr=0.001", method="lora@shared"))
    run.meet("a")
    rates = {name.rpartition("/")[2]: run.learning_rate(name) for name in run.host.trainable(["a"])}
    assert rates["A"] == pytest.approx(0.001)
    assert rates["B"] == pytest.approx(0.016)


def test_the_losses_of_an_update_leave_the_device_together(tmp_path, monkeypatch):
    """However many batches an update has, it waits for the device once to know that they are finite."""
    from mtpeft.training import loop

    met = []
    monkeypatch.setattr(loop, "check_losses", lambda given, at: met.append(len(given)) or [float(v) for _, v in given])
    Session.start(config(tmp_path / "run", "schedule.accumulate=2", "schedule.steps=3")).train()
    assert met[-3:] == [4, 4, 4]  # of two tasks, in two batches each
