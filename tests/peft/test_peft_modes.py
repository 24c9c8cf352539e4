"""Training and evaluation mode: looking at a backbone changes nobody's, and what comes later has the host's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mtpeft
from mtpeft.errors import NotApplicable
from mtpeft.peft.configured import as_methods
from mtpeft.peft.host import Host
from mtpeft.testing.zoo import zoo


def mixed_modes() -> nn.Module:
    backbone = zoo()["resnet"]().train()
    backbone.bn1.eval()
    backbone.layer2.eval()
    return backbone


def modes(backbone: nn.Module) -> list[tuple[str, bool]]:
    return [(path, module.training) for path, module in backbone.named_modules()]


@pytest.mark.parametrize("method", ["linear-probe", "lora", "adapter-pfeiffer"])
def test_detach_gives_every_module_its_own_mode_back(method):
    backbone = mixed_modes()
    before = modes(backbone)
    host = Host(backbone, as_methods(method), ["a"]).eval()
    host.detach()
    assert modes(backbone) == before


def test_a_refusal_gives_every_module_its_own_mode_back():
    backbone = mixed_modes()
    before = modes(backbone)
    with pytest.raises(NotApplicable):
        Host(backbone, as_methods("vpt-deep"), ["a"])
    assert modes(backbone) == before


def test_running_statistics_stay_frozen_after_a_head_was_built_in_training():
    backbone = zoo()["resnet"]().train()
    statistics = [buffer.clone() for buffer in backbone.buffers()]
    host = mtpeft.adapt(backbone, "lora", tasks={"pets": mtpeft.head("cls", ["cat", "dog"])})
    host.predict(torch.randn(3, 3, 64, 64), "pets")
    assert all(torch.equal(*pair) for pair in zip(backbone.buffers(), statistics, strict=True))


@pytest.mark.parametrize("training", [True, False])
def test_parts_copies_and_heads_that_come_later_have_the_hosts_mode(training):
    host = Host(zoo()["vit"](), as_methods("adaptformer@task+hydra-lora@shared"), ["a"]).train(training)
    host.add_task("later")
    host.add_head("later", nn.Sequential(nn.Dropout(0.5)))
    added = [*host.parts.modules(), *host.heads.modules()]
    assert {module.training for module in added} == {training}
