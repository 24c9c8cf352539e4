"""Mutants that once survived, of promises that no gradient shows: each property holds, and fails under its mutant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from unittest.mock import patch

import pytest
import timm
import torch
from support.mutants import Mutant
from support.training_toy import config

from mtpeft.api import Host, NotApplicable
from mtpeft.peft import host as host_module
from mtpeft.peft import merging
from mtpeft.schedule import TaskSize
from mtpeft.training import checkpoint
from mtpeft.training.evaluate import evaluate
from mtpeft.training.session import Session
from mtpeft.training.setup import setup
from mtpeft_plugins.partial.ssf import Ssf
from mtpeft_plugins.schedules.interleaved import Interleaved


def annealing_ends_at_its_end(folder: Path) -> None:
    """The first epoch draws by size, the last by size^0.2, and the steps between are equal."""
    progress: list[float] = []
    shares = Interleaved.shares

    def recorded(self: Interleaved, counts: list[int], at: float = 0.0) -> list[float]:
        progress.append(at)
        return shares(self, counts, at)

    sizes = {"a": TaskSize(8, 4), "b": TaskSize(16, 4)}  # an epoch is 2 + 4 updates
    schedule = Interleaved(sampler="annealed", epochs=5)
    with patch.object(Interleaved, "shares", recorded):
        list(schedule.quotas(sizes, 30, Random(0)))
    assert progress == [epoch / 4 for epoch in range(5) for _ in range(6)]
    last = [count**0.2 for count in (8, 16)]
    assert schedule.shares([8, 16], progress[-1]) == pytest.approx([share / sum(last) for share in last])


def one_state_is_kept(folder: Path) -> None:
    Session.start(config(folder / "run", "output.save_every=2")).train()
    states = [path for path in (folder / "run" / "state").iterdir() if path.is_dir()]
    assert states == [checkpoint.current_state(folder / "run" / "state")]


def a_bias_that_timm_does_not_save_is_refused(folder: Path) -> None:
    """BEiT's keys have a bias in a buffer outside of the state dict."""
    beit = timm.create_model("beit_base_patch16_224", img_size=32, embed_dim=16, depth=1, num_heads=2, num_classes=0)
    host = Host(beit.eval(), [("ssf", Ssf(at="attn.k"))], ["a"])
    for parameter in host.trainable(["a"]).values():
        parameter.data.fill_(0.5)
    try:
        host.merged_state("a")
    except NotApplicable as error:
        assert "k_bias" in error.message
    else:
        raise AssertionError("it was merged, and the change of the bias is lost")


def a_group_is_evaluated_without_its_task(folder: Path) -> None:
    settings = ["tasks.a.group=g", "tasks.b.group=g", "tasks.a.names=['red','green']", "tasks.b.names=['blue']"]
    run = setup(
        config(
            folder / "run",
            *settings,
            "tasks.b.degenerate=allow",
            tasks="a=colours,b=colours,c=colours",
            method="toy@shared",
        )
    )
    told, forward = [], Host.forward

    def recorded(self: Host, images: torch.Tensor, task: str | None = None) -> object:
        told.extend([task] if task is None or isinstance(task, str) else task)
        return forward(self, images, task)

    for name in run.tasks:
        run.meet(name)
    with patch.object(Host, "forward", recorded):
        for name in run.tasks:
            evaluate(run, name, "test")
    assert set(told) == {None, "c"}


PROPERTIES: dict[Callable[[Path], None], Mutant] = {
    annealing_ends_at_its_end: Mutant(Interleaved, "_draws", "steps // length - 1", "steps // length"),
    one_state_is_kept: Mutant(checkpoint, "save_state", "other.is_dir() and other.name != name", "False"),
    a_bias_that_timm_does_not_save_is_refused: Mutant(merging, "_check_bias", "if not model.saves(*key)", "if False"),
    a_group_is_evaluated_without_its_task: Mutant(
        host_module, "predictions_of", "None if task in untold else task", "task"
    ),
}


@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda holds: holds.__name__)
def test_it_holds_and_its_mutant_is_killed(holds: Callable[[Path], None], tmp_path: Path) -> None:
    holds(tmp_path / "whole")
    with PROPERTIES[holds].alive(), pytest.raises(AssertionError):
        holds(tmp_path / "mutant")
