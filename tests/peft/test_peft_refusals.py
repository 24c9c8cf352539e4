"""What would go wrong in silence is refused in one sentence, and the backbone is left as it was."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from mtpeft.api import Method, Part, Site, WeightPart
from mtpeft.errors import MtpeftError, NotApplicable, UsageError
from mtpeft.peft.configured import as_methods
from mtpeft.peft.host import Host
from mtpeft.plugins import resolve
from mtpeft.testing import zoo

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def attached(methods: str, family: str = "vit") -> Host:
    return Host(zoo()[family](), as_methods(methods), ["a", "b"]).eval()


@pytest.mark.parametrize(
    ("before", "behind", "hint"),
    [
        ("lora", "full", "name full first, before lora"),
        ("ssf", "bitfit", "name bitfit first, before ssf"),
        ("hydra@task", "bitfit@task", "name bitfit first, before hydra"),
        ("bitfit", "full", "leave one of them out"),
        ("full", "partial-k@task", "leave one of them out"),
    ],
)
def test_a_tensor_in_the_place_of_what_another_part_changed_is_refused(before: str, behind: str, hint: str) -> None:
    backbone = zoo()["vit"]()
    with pytest.raises(NotApplicable, match="puts a tensor of its own in the place of") as refused:
        Host(backbone, as_methods(f"{before}+{behind}"), ["a"])
    assert refused.value.hint == hint
    assert not any(module._forward_hooks for module in backbone.modules())


@pytest.mark.parametrize("methods", ["full+lora", "bitfit+ssf", "lora+bitfit", "full@task+lora@shared", "difffit+lora"])
def test_in_the_other_order_or_on_other_tensors_every_part_trains(methods: str) -> None:
    host, target = attached(methods), torch.randn(2, 32)
    optimizer = torch.optim.SGD(host.trainable(["a"]).values(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (host(IMAGES, "a").pooled - target).square().sum().backward()
        optimizer.step()
    assert not [name for name, p in host.trainable(["a"]).items() if p.grad is None or not p.grad.any()]


def test_rows_apart_may_be_replaced_each() -> None:
    full = resolve("methods", "full")
    host = Host(zoo()["vit"](), [("q", full(at="attn.q")), ("v", full(at="attn.v"))], ["a"])
    assert len(host.tensors("shared")) == 6
    with pytest.raises(NotApplicable, match=r"in the place of blocks\.0\.attn\.q"):
        Host(zoo()["vit"](), [("whole", full(at="attn.qkv")), ("q", full(at="attn.q"))], ["a"])


@pytest.mark.parametrize(("methods", "at"), [("vp", "linear"), ("repadapter", "attn.q")])
def test_a_method_that_builds_no_part_is_refused(methods: str, at: str) -> None:
    method = resolve("methods", methods)(at=at)
    with pytest.raises(NotApplicable, match=f'{methods} has nothing to train at "{at}"'):
        Host(zoo()["vit"](), [(methods, method)], ["a"])


def test_a_method_that_wants_no_part_is_not() -> None:
    assert attached("linear-probe").count().parts == 0


class Fixed(WeightPart):
    def __init__(self, site: Site) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(site.out_features), requires_grad=False)

    def forward(self, weight: Tensor) -> Tensor:
        return self.gain[:, None] * weight


@dataclass
class Giving(Method):
    """Gives what it was made with."""

    at: str = "mlp.fc1"

    def part(self, site: Site) -> Part:
        return self.kind(site)


@pytest.mark.parametrize(
    ("kind", "message", "hint"),
    [
        (lambda site: nn.Linear(1, 1), "gives a Linear for blocks.0.mlp.fc1", "a part is one of WeightPart, "),
        (lambda site: Part(), "gives a Part for blocks.0.mlp.fc1", "a part is one of WeightPart, "),
        (Fixed, "gives blocks.0.mlp.fc1 a parameter gain that needs no gradient", "buffer"),
    ],
)
def test_what_is_no_trained_part_is_told(kind, message: str, hint: str) -> None:
    method = Giving()
    method.kind = kind
    with pytest.raises(MtpeftError, match=message) as told:
        Host(zoo()["vit"](), [("giving", method)], ["a"])
    assert hint in told.value.hint


@dataclass
class SharesFixed(Giving):
    """Its parts share a tensor that shall not train."""

    def common(self, sites) -> nn.Module:
        return nn.Linear(1, 1).requires_grad_(False)


def test_what_parts_share_is_trained_too() -> None:
    with pytest.raises(MtpeftError, match="giving shares a parameter weight that needs no gradient"):
        Host(zoo()["vit"](), [("giving", SharesFixed())], ["a"])


def test_blocks_alone_choose_no_features() -> None:
    with pytest.raises(UsageError, match='no site in blocks "1" matches "features"'):
        Host(zoo()["vit"](), [("lst", resolve("methods", "lst")(blocks="1"))], ["a"])


def test_a_routed_method_says_what_to_do_where_weights_are_read_directly() -> None:
    with pytest.raises(NotApplicable) as refused:
        attached("hydra-lora", "beit")
    assert refused.value.hint == "choose other sites with at, such as mlp.fc1 mlp.fc2"
    method = resolve("methods", "hydra-lora")(at="mlp.fc1 mlp.fc2")
    assert Host(zoo()["beit"](), [("hydra-lora", method)], ["a"]).count().parts


@pytest.mark.parametrize(("name", "at"), [("hydra-lora", "norm1"), ("noah", "tokens norm1 mlp")])
def test_a_site_without_a_matrix_has_no_low_rank_update(name: str, at: str) -> None:
    with pytest.raises(NotApplicable, match="has no weight matrix"):
        Host(zoo()["vit"](), [(name, resolve("methods", name)(at=at))], ["a"])
