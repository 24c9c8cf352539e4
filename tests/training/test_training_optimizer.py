from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from support.training_toy import config
from torch import nn

from mtpeft.training.optimizer import build_optimizer, clip, rate, set_rate
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
    optimizer = build_optimizer(parameters, {"w": 0.1, "b": 0.1, "h": 0.2}, betas=(0.9, 0.999), weight_decay=0.5)
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
    optimizer = build_optimizer({}, {}, betas=(0.9, 0.999), weight_decay=0.1)
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
