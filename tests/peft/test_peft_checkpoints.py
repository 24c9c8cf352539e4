"""Recomputed blocks, whoever asked timm for it and whenever."""

from __future__ import annotations

import copy

import pytest
import torch

from mtpeft.errors import NotApplicable
from mtpeft.peft.configured import as_methods
from mtpeft.peft.host import Host
from mtpeft.testing.zoo import zoo


def gradients(host: Host) -> list[torch.Tensor]:
    """Of two tasks, where both passes come before both backward passes."""
    images = torch.randn(3, 3, *host.image_size, generator=torch.Generator().manual_seed(0))
    losses = [host(images, task).pooled.square().sum() for task in ("a", "b")]
    for loss in losses:
        loss.backward()
    found = [parameter.grad.clone() for parameter in host.trainable(["a", "b"]).values()]
    host.zero_grad(set_to_none=True)
    return found


def make(backbone: torch.nn.Module) -> Host:
    torch.manual_seed(0)
    host = Host(backbone, as_methods("lora@task+vpt-shallow@task"), ["a", "b"]).eval()
    for parameter in host.trainable(["a", "b"]).values():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return host


@pytest.mark.parametrize("asked", ["before", "after", "of a copy"])
def test_a_backbone_that_was_asked_directly_recomputes_under_the_right_task(asked):
    expected = gradients(make(zoo()["vit"]()))
    backbone = zoo()["vit"]()
    if asked == "before":
        backbone.set_grad_checkpointing()
    host = make(backbone)
    if asked == "of a copy":
        host = copy.deepcopy(host)
    host.backbone.set_grad_checkpointing()
    torch.testing.assert_close(gradients(host), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("within", [False, True])
def test_detach_gives_back_whether_blocks_are_recomputed(before, within):
    backbone = zoo()["vit"]()
    backbone.set_grad_checkpointing(before)
    host = make(backbone)
    host.checkpointing(within)
    assert host.detach().grad_checkpointing is before


def test_reentrant_checkpoints_are_refused(monkeypatch):
    monkeypatch.setattr("timm.layers.use_reentrant_ckpt", lambda: True)
    host = make(zoo()["vit"]())
    with pytest.raises(NotApplicable, match="reentrant"):
        host.checkpointing()


def test_a_backbone_that_cannot_recompute_can_do_without(monkeypatch):
    host = make(zoo()["vit"]())
    monkeypatch.delattr(type(host.backbone), "set_grad_checkpointing")
    host.checkpointing(False)
    with pytest.raises(NotApplicable, match="does not support gradient checkpointing"):
        host.checkpointing()
