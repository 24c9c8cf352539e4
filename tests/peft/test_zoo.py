"""The zoo: small, repeatable, and nothing in it that only looks dead."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.layers import LayerScale

from mtpeft.backbone import state_sha256
from mtpeft.peft.host import Host
from mtpeft.testing import zoo

UNUSED = ("mask_token", "pos_embed", "k_bias", "head", "fc_norm", "norm.")
"""Tensors that timm keeps and a pass may not use."""


@pytest.mark.parametrize("family", zoo())
def test_every_call_gives_the_same_small_model(family: str) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, second = zoo()[family](), zoo()[family]()
    assert torch.equal(torch.get_rng_state(), state)
    assert state_sha256(first.state_dict()) == state_sha256(second.state_dict())
    assert sum(p.numel() for p in first.parameters()) < 600_000
    assert not first.training


@pytest.mark.parametrize("family", zoo())
def test_features_have_the_widths_that_are_promised(family: str) -> None:
    host = Host(zoo()[family](), [], ["a"])
    features = host(torch.randn(2, 3, *host.image_size, generator=torch.Generator().manual_seed(0)), "a")
    info = host.info
    height, width = host.image_size
    assert features.pooled.shape == (2, info.pooled)
    assert [tuple(m.shape) for m in features.maps] == [
        (2, c, height // s, width // s) for c, s in zip(info.channels, info.strides, strict=True)
    ]
    assert (0 if features.prefix is None else features.prefix.shape[1]) == info.prefix
    assert (features.pooled[0] - features.pooled[1]).abs().max() > 0.1
    assert all(m.isfinite().all() and m.abs().max() < 100 for m in features.maps)


@pytest.mark.parametrize("family", zoo())
def test_no_gain_is_near_zero_and_every_block_is_alive(family: str) -> None:
    model = zoo()[family]()
    gains = [m.gamma for m in model.modules() if isinstance(m, LayerScale)]
    gains += [p for n, p in model.named_parameters() if (n.endswith("weight") and p.ndim == 1) or "gamma" in n]
    assert all(gain.mean() > 0.5 for gain in gains)
    host = Host(model)
    host.backbone.requires_grad_(True)
    features = host(torch.randn(2, 3, *host.image_size))
    sum(t.square().sum() for t in (features.pooled, *features.maps)).backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert [n for n in still if not any(unused in n for unused in UNUSED)] == []


def test_the_zoo_has_what_the_families_differ_in() -> None:
    hosts = {family: Host(build()) for family, build in zoo().items()}
    assert {family: host.info.prefix for family, host in hosts.items() if host.info.prefix} == {
        "vit": 1, "vit-reg4": 5, "deit": 2, "beit": 1, "eva02": 1, "eva02-base": 1, "dinov3": 5
    }  # fmt: skip
    assert hosts["vit-gap"].image_size == (32, 48)
    positions = {family: host.sites[0].model.positions for family, host in hosts.items()}
    assert {family for family, kind in positions.items() if kind == "rotary"} == {"eva02", "eva02-base", "dinov3"}
    assert {"beit", "swin", "swinv2", "maxvit"} <= {f for f, kind in positions.items() if kind == "relative"}
    assert all(len(host.info.strides) > 1 for family, host in hosts.items() if family in ("swin", "convnext", "resnet"))


def test_a_swin_of_one_stride_gives_channels_first() -> None:
    settings = {"img_size": (32, 32), "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": (1, 1)}
    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, num_heads=(2, 2), **settings)
    host = Host(model, image_size=(32, 32))
    assert (host.info.channels, host.info.strides) == ((32,), (4,))
    (found,) = host(torch.randn(2, 3, 32, 32)).maps
    assert found.shape == (2, 32, 8, 8)
