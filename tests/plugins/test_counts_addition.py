"""Trained parameters of the addition-based methods on ViT-B/16, by closed forms; and the shapes that make them up."""

from __future__ import annotations

import pytest
import timm
import torch

from mtpeft.commands.count import count
from mtpeft.peft.host import Host
from mtpeft.plugins import resolve

D, L = 768, 12
ROWS = [
    ("adapter-pfeiffer", "hidden=8", 156768),
    ("adapter-pfeiffer", "hidden=16", 304320),
    ("adapter-pfeiffer", "hidden=64", 1189632),
    ("adapter-houlsby", "hidden=8", 313536),
    ("adapter-plus", "hidden=8", 165984),
    ("adapter-plus", "hidden=16", 313536),
    ("adapter-plus", "hidden=32", 608640),
    ("convpass", "hidden=8", 327552),
    ("convpass", "hidden=8 at=attn", 163776),
    ("sct", "channels=96", 111744),
    ("mona", "hidden=64", 2684928),
    ("vp", "width=30", 69840),
    ("prefix", "tokens=10", 184320),
    ("prefix", "tokens=20", 368640),
    ("e2vpt", "tokens=5 key_values=5", 92160),
    ("vqt", "tokens=10", 92160),
    ("patt", "hidden=64", 2379264),
    ("dtl", "rank=2", 36864),
    ("dtl-plus", "rank=2 kernel=3", 43776),
    ("dtl-plus", "rank=2 kernel=4", 49152),
    ("dtl-plus", "rank=2 kernel=5", 56064),
    ("repadapter", "hidden=8 groups=2", 239808),
    ("repadapter", "hidden=8 groups=2 at=attn.qkv", 119904),
    ("adaptformer", "hidden=8", 156768),
    ("adaptformer", "hidden=64", 1189632),
    ("adaptformer", "hidden=8 ln_in=true", 175200),
    ("adaptformer", "hidden=64 ln_in=true", 1208064),
    ("vpt-shallow", "tokens=10", 7680),
    ("vpt-shallow", "tokens=50", 38400),
    ("vpt-shallow", "tokens=100", 76800),
    ("vpt-deep", "tokens=10", 92160),
    ("vpt-deep", "tokens=50", 460800),
    ("vpt-deep", "tokens=100", 921600),
    ("compacter", "hidden=24 terms=4 rank=1", 4**3 + 2 * L * (2 * (D // 4 + 24 // 4) * 4 + 24 + D)),
    ("bi-adapter", "hidden=32", 2 * D * 32 * L),
    ("lorand", "", 2 * L * (2 * (2 * 8 * (D + D // 2) + 8 * 8) + D + D // 2)),
    ("res-tuning", "hidden=8", 2 * L * (2 * D * 8 + 8 + D)),
    ("res-tuning", "tuner=prefix tokens=10", 2 * L * 2 * 10 * D),
    ("res-tuning", "tuner=prompt tokens=10", 2 * L * (10 * D + D)),
]


@pytest.fixture(scope="module")
def vit_base():
    """Its architecture, without weights."""
    with torch.device("meta"):
        return timm.create_model("vit_base_patch16_224", pretrained=False, num_classes=0)


@pytest.mark.parametrize(("method", "settings", "expected"), ROWS)
def test_count_is_the_closed_form(vit_base, method, settings, expected):
    values = {name: parsed(value) for name, value in (pair.split("=") for pair in settings.split())}
    with torch.device("meta"):
        host = Host(vit_base, [(method, resolve("methods", method)(**values))])
    assert host.count().parts == expected
    host.detach()


def parsed(text: str) -> int | bool | str:
    return {"true": True}.get(text, int(text) if text.isdigit() else text)


def test_the_command_counts_the_same():
    settings = ["methods.convpass.hidden=8", "methods.convpass.at=attn"]
    assert count("convpass", "vit_base_patch16_224", settings=settings)["parts"] == 163776
    at = "methods.lora.at=attn.qkv attn.proj mlp.fc1 mlp.fc2"
    owned = count("lora", "vit_base_patch16_224", 3, ["methods.lora.scope=task", "methods.lora.rank=8", at])
    assert (owned["parts"], owned["per_task"], owned["shared"]) == (3_538_944, 1_179_648, 0)


def test_one_bit_adapters_take_72_kibibytes():
    with torch.device("meta"):
        vit = timm.create_model("vit_base_patch16_224", pretrained=False, num_classes=0)
        host = Host(vit, [("bi-adapter", resolve("methods", "bi-adapter")())])
    latent = list(host.tensors("shared"))
    assert latent == [f"bi-adapter/blocks.{i}.mlp/{m}.weight" for i in range(L) for m in ("down", "up")]
    assert host.count().parts / 8 / 1024 == 72.0


@pytest.mark.parametrize(
    ("method", "backbone", "expected"),
    [
        ("mona", "swin_base_patch4_window7_224", 3667456),
        ("mona", "swin_large_patch4_window7_224", 5267712),
        ("adapter-houlsby", "swin_base_patch4_window7_224", 3107328),
        ("adapter-houlsby", "swin_large_patch4_window7_224", 4659456),
        ("lorand", "swin_base_patch4_window7_224", 1197312),
    ],
)
def test_published_counts_of_windowed_backbones(method, backbone, expected):
    settings = ["methods.adapter-houlsby.hidden=64"] if method == "adapter-houlsby" else []
    assert count(method, backbone, settings=settings)["parts"] == expected
