"""Parts, copies and heads have the backbone's dtype, whenever they are added."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mtpeft
from mtpeft.peft.configured import as_methods
from mtpeft.peft.host import Host
from mtpeft.testing.zoo import zoo

METHODS = "hydra-lora@shared+adaptformer@task+ln-tune@task"


def dtypes(host: Host) -> set[torch.dtype]:
    return {tensor.dtype for module in (host.parts, host.heads) for tensor in module.parameters()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_backbone_of_another_dtype_is_adapted_and_trained(dtype):
    tasks = {"a": mtpeft.head("cls", ["x", "y"]), "b": mtpeft.head("cls", ["x", "y"])}
    host = mtpeft.adapt(zoo()["vit"]().to(dtype), METHODS, tasks)
    assert dtypes(host) == {dtype}
    host(torch.randn(4, 3, 32, 32, dtype=dtype), ["a", "b", "a", "b"]).pooled.float().sum().backward()
    host.predict(torch.randn(4, 3, 32, 32, dtype=dtype), "a").float().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in host.trainable(["a", "b"]).values())


def test_what_is_added_to_a_converted_host_has_its_dtype_and_nothing_else_is_converted():
    host = Host(zoo()["vit"](), as_methods(METHODS), ["a"]).double().eval()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    before = host(images, "a").pooled
    host.add_task("later")
    host.add_head("later", nn.Linear(32, 2))
    assert dtypes(host) == {torch.float64}
    assert host(images, "later").pooled.dtype == torch.float64
    assert torch.equal(host(images, "a").pooled, before)
