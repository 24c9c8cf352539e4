"""Loggers, optimizers and heads by name."""

from __future__ import annotations

import csv

import pytest
import torch
from torch import nn

import mtpeft
from mtpeft import plugins
from mtpeft.api import Head, UsageError, hookimpl
from mtpeft.backbone import create_backbone
from mtpeft.hosts import build_head
from mtpeft.plugins import create
from mtpeft.training.loggers import make_loggers
from mtpeft.training.optimizer import build_optimizer

UPDATE = {"event": "update", "stage": 0, "step": 4, "losses": {"cls": 0.25, "det": 1.5}, "norm": 2.0}
SCORE = {"event": "evaluate", "stage": 0, "step": 5, "task": "det", "split": "val", "value": None, "count": 3}


def test_the_csv_logger_writes_losses_and_metrics_in_long_form(tmp_path) -> None:
    for events in ([UPDATE, SCORE], [{"event": "begin"}, UPDATE | {"step": 5}]):
        logger = make_loggers({"csv": {"file": "curve.csv"}})["csv"]
        logger.open(tmp_path)
        for event in events:
            logger.log(event)
        logger.close()
    rows = list(csv.reader((tmp_path / "curve.csv").read_text().splitlines()))
    assert rows == [
        ["event", "stage", "step", "task", "split", "value"],
        ["update", "0", "4", "cls", "train", "0.25"],
        ["update", "0", "4", "det", "train", "1.5"],
        ["evaluate", "0", "5", "det", "val", ""],
        ["update", "0", "5", "cls", "train", "0.25"],
        ["update", "0", "5", "det", "train", "1.5"],
    ]


def test_a_wrong_logger_is_named() -> None:
    with pytest.raises(UsageError, match='there is no logger "cvs"') as caught:
        make_loggers({"cvs": {}})
    assert 'did you mean "csv"?' in caught.value.hint
    with pytest.raises(UsageError, match=r"there is no setting loggers\.csv\.path"):
        make_loggers({"csv": {"path": "x"}})


def step(name: str, **settings) -> float:
    """A weight of 1 after two steps with gradient 1, rate 0.1 and weight decay 0.5."""
    weight = nn.Parameter(torch.ones(1, 1))
    made = create("optimizers", name, settings, "optimizer")
    optimizer = build_optimizer(made, {"w": weight}, {"w": 0.1}, weight_decay=0.5)
    for _ in range(2):
        weight.grad = torch.ones(1, 1)
        optimizer.step()
    return weight.item()


def test_sgd_by_its_closed_form() -> None:
    first = 1 - 0.1 * 1.5
    assert step("sgd", momentum=0.0) == pytest.approx(first - 0.1 * (1 + 0.5 * first))
    assert step("sgd") == pytest.approx(first - 0.1 * (0.9 * 1.5 + 1 + 0.5 * first))


def test_adamw_by_its_closed_form() -> None:
    assert step("adamw") == pytest.approx((0.95 - 0.1) * 0.95 - 0.1, abs=1e-6)


def test_timms_optimizers_by_timms_names() -> None:
    assert step("timm", algorithm="lion") == pytest.approx((0.95 - 0.1) * 0.95 - 0.1)
    assert step("timm", algorithm="momentum", options={"momentum": 0.0}) == pytest.approx(step("sgd", momentum=0.0))
    with pytest.raises(UsageError, match='timm has no optimizer "lyon"') as caught:
        step("timm", algorithm="lyon")
    assert 'did you mean "lion"?' in caught.value.hint
    with pytest.raises(UsageError, match="lion does not take"):
        step("timm", algorithm="lion", options={"nonsense": 1})


def test_settings_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(UsageError, match="nesterov"):
        step("sgd", momentum=0.0, nesterov=True)
    with pytest.raises(UsageError, match="sgd does not take"):
        step("timm", algorithm="sgd", options={"momentum": 0.0})


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(UsageError, match='there is no optimizer "adam2"'):
        step("adam2")


class Constant(Head):
    def __init__(self, info, classes, *, value: float = 0.0) -> None:
        super().__init__()
        self.classes, self.value = tuple(classes), value

    def forward(self, features):
        return torch.full((len(features.pooled), len(self.classes)), self.value)

    def extend(self, classes) -> None:
        self.classes += tuple(classes)


class Heads:
    @hookimpl
    def register_heads(self) -> dict[str, str]:
        return {"cls/constant": f"{__name__}:Constant"}


def test_a_plugin_adds_a_head_to_a_task_type() -> None:
    plugins.manager().register(Heads(), "heads")
    config = {"name": "constant", "value": 2.0}
    host = mtpeft.adapt(
        create_backbone("micro", pretrained=False).module,
        "lora",
        {"a": mtpeft.head("cls", ["x", "y"], head_config=config)},
    )
    assert host.predict(torch.rand(2, 3, 64, 64), "a").tolist() == [[2.0, 2.0]] * 2
    with pytest.raises(UsageError, match='unknown head "constant"'):
        build_head(mtpeft.head("det", ["x"], head_config=config), host)
