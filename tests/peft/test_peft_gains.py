"""Gains run on activations where that is the same, and as functions of the weight where it is not."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mtpeft.api import NotApplicable, OutputPart
from mtpeft.peft.host import Host
from mtpeft.plugins import resolve
from mtpeft.testing import zoo


def hosted(family: str, *methods: str, tasks: tuple[str, ...] = ("a",), scope: str = "shared") -> Host:
    """A host whose parts have moved."""
    torch.manual_seed(0)
    made = [(name, resolve("methods", name)(scope=scope)) for name in methods]
    host = Host(zoo()[family](), made, list(tasks)).eval()
    with torch.no_grad():
        for value in host.trainable(list(tasks)).values():
            value.add_(0.1 * torch.randn_like(value))
    return host


def gained(host: Host) -> set[str]:
    """The modules where gains run on activations."""
    return {path for path, hook in host.attachments.hooks.items() if "gain" in hook.mounts}


def viewed(host: Host) -> set[str]:
    """The modules with a tensor that is computed anew whenever it is read."""
    return {name for name, module in host.backbone.named_modules() if parametrize.is_parametrized(module)}


def merged(host: Host, family: str, images: Tensor) -> Tensor:
    plain = zoo()[family]()
    plain.load_state_dict(host.merged_state("a"))
    return Host(plain).eval()(images).pooled


@pytest.mark.parametrize(("method", "family"), [("ssf", "vit"), ("ssf", "convnext"), ("ia3", "vit"), ("ia3", "swin")])
def test_no_weight_is_computed_anew_and_the_result_is_the_merged_one(method, family):
    host = hosted(family, method)
    images = torch.randn(2, 3, *host.image_size)
    assert gained(host) and not viewed(host)
    with torch.no_grad():
        torch.testing.assert_close(host(images, "a").pooled, merged(host, family, images), rtol=1e-4, atol=1e-5)


def tiny(name: str) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False, num_classes=0, drop_path_rate=0.0).eval()


def moved(backbone: nn.Module, at: str) -> Host:
    host = Host(backbone, [("ssf", resolve("methods", "ssf")(at=at))], ["a"]).eval()
    for value in host.trainable(["a"]).values():
        value.data.add_(torch.randn_like(value), alpha=0.1)
    return host


def test_before_an_activation_inside_the_module_the_weight_is_computed():
    host, plain = moved(tiny("test_efficientnet_ln"), "norm"), tiny("test_efficientnet_ln")
    images = torch.randn(2, 3, *host.image_size)
    plain.load_state_dict(host.merged_state("a"))
    torch.testing.assert_close(Host(plain).eval()(images).pooled, host(images, "a").pooled, rtol=1e-4, atol=1e-5)


def test_a_weight_that_is_standardised_before_use_holds_no_gain():
    host = moved(tiny("test_nfnet"), "conv")
    with pytest.raises(NotApplicable, match="standardises its weight"):
        host.merge("a")


@pytest.mark.parametrize("family", ["beit", "eva02", "swinv2"])
def test_where_the_module_is_bypassed_the_weight_is_computed(family):
    host = hosted(family, "ia3")
    assert viewed(host) and gained(host) and not viewed(host) & gained(host)


@pytest.mark.parametrize("methods", [("ssf", "lora"), ("lora", "ssf"), ("bitfit", "ssf"), ("ssf", "ia3")])
def test_beside_other_changes_of_the_same_tensors_the_order_holds(methods):
    host = hosted("vit", *methods)
    images = torch.randn(2, 3, *host.image_size)
    with torch.no_grad():
        torch.testing.assert_close(host(images, "a").pooled, merged(host, "vit", images), rtol=1e-4, atol=1e-5)
    qkv = "blocks.0.attn.qkv"
    assert (qkv in gained(host)) == (methods == ("ssf", "ia3")) and (qkv in viewed(host)) != (qkv in gained(host))


class SeesInput(OutputPart):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.gate * x.mean(-1, keepdim=True)


def test_an_output_part_sees_the_input_as_it_is(monkeypatch):
    difffit = resolve("methods", "difffit")
    monkeypatch.setattr(difffit, "part", lambda self, site: SeesInput(site.out_features))
    torch.manual_seed(0)
    methods = [("ia3", resolve("methods", "ia3")()), ("difffit", difffit(at="mlp.fc2"))]
    host = Host(zoo()["vit"](), methods, ["a"]).eval()
    assert "blocks.0.mlp.fc2" in viewed(host) and "blocks.0.attn.qkv" in gained(host)


@pytest.mark.parametrize("method", ["ssf", "ia3", "attnscale"])
def test_tasks_with_gains_of_their_own_share_a_pass(method):
    host = hosted("vit", method, tasks=("a", "b"), scope="task")
    names, images = ["b", "a", "b"], torch.randn(3, 3, *host.image_size)
    norms = method == "attnscale"  # it trains norms besides, which are tensors of their own
    assert host.attachments.can_share_pass(["a", "b"], per_task_gradients=False) != norms
    with torch.no_grad():
        mixed = host(images, names).pooled
        for row, name in enumerate(names):
            torch.testing.assert_close(mixed[row : row + 1], host(images[row : row + 1], name).pooled)


def test_under_autocast_a_gain_keeps_the_dtype():
    host = hosted("vit", "ssf")
    seen = []
    host.backbone.blocks[0].mlp.fc1.register_forward_hook(lambda module, args, y: seen.append(y.dtype))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        host(torch.randn(1, 3, *host.image_size), "a")
    assert seen == [torch.bfloat16]
