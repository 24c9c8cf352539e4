"""Trained parameters of the reparameterisations on ViT-B/16, by closed forms; and the tensors that make them up."""

from __future__ import annotations

import pytest
import timm
import torch

from mtpeft.peft.host import Host
from mtpeft.plugins import resolve

D, L = 768, 12
QV, QKV, LINEARS = "attn.q attn.v", "attn.qkv", "attn.qkv attn.proj mlp.fc1 mlp.fc2"
SIX = "attn.q attn.k attn.v attn.proj mlp.fc1 mlp.fc2"
ROWS = [
    ("lora", {"rank": 4, "at": QV}, 147456),
    ("lora", {"rank": 8, "at": QV}, 294912),
    ("lora", {"rank": 16, "at": QV}, 589824),
    ("lora", {"rank": 8, "at": QKV}, 294912),
    ("lora", {"rank": 8, "at": f"{QKV} attn.proj"}, 442368),
    ("lora", {"rank": 8, "at": LINEARS}, 1179648),
    ("lora", {"rank": 8, "at": SIX}, 1327104),
    ("dora", {"rank": 8, "at": QV}, 313344),
    ("dora", {"rank": 8, "at": QKV}, 322560),
    ("dora", {"rank": 8, "at": LINEARS}, 1262592),
    ("adalora", {"rank": 12, "at": QKV}, 442512),
    ("adalora", {"rank": 12, "at": LINEARS}, 1770048),
    ("loha", {"rank": 8, "at": QKV}, 589824),
    ("loha", {"rank": 8, "at": LINEARS}, 2359296),
    ("lokr", {"rank": 8, "at": QKV}, 21504),
    ("lokr", {"rank": 8, "at": LINEARS}, 80640),
    ("lokr", {"rank": 8, "both": True, "at": QKV}, 14592),
    ("lokr", {"rank": 8, "both": True, "at": LINEARS}, 57600),
    ("lokr", {"rank": 24, "at": QKV}, L * (48 * 24 + 48 * 32)),
    ("oft", {"block": 32, "at": QKV}, 142848),
    ("oft", {"block": 32, "at": LINEARS}, 999936),
    ("boft", {"block": 8, "factors": 1, "at": QKV}, 101376),
    ("boft", {"block": 8, "factors": 1, "at": LINEARS}, 599040),
    ("boft", {"block": 8, "factors": 3, "at": QKV}, L * (3 * D * 8 + 3 * D)),
    ("vera", {"rank": 256, "at": QKV}, 30720),
    ("vera", {"rank": 256, "at": LINEARS}, 95232),
    ("hra", {"rank": 8, "at": QKV}, 73728),
    ("hra", {"rank": 8, "at": LINEARS}, 516096),
    ("randlora", {"rank": 32, "at": QKV}, 230400),
    ("randlora", {"rank": 32, "at": LINEARS}, 921600),
    ("fourierft", {"coefficients": 1000, "at": LINEARS}, 4 * L * 1000),
    ("fact-tt", {"rank": 4}, 8448),
    ("fact-tt", {"rank": 8}, 21504),
    ("fact-tt", {"rank": 16}, 61440),
    ("fact-tk", {"rank": 8}, 13952),
    ("fact-tk", {"rank": 16}, 30976),
    ("fact-tk", {"rank": 32}, 86528),
    ("efft", {"rank": 16}, 87552),
    ("arc", {"rank": 50}, 96432),
    ("arc", {"rank": 50, "at": "attn.q attn.k attn.v"}, 48216),
    ("kadaptation", {"terms": 32}, 50176),
    ("krona", {"at": QV}, 36864),
    ("hydra", {"rank": 2}, 239712),
    ("glora", {"rank": 4, "at": QKV}, L * (2 * 4 * (D + 3 * D) + 4 * (D + 1) + 2 * 3 * D)),
    ("glora", {"weight_scale": "vector", "weight_shift": "none", "prompt": "none", "bias_scale": "none",
               "bias_shift": "scalar", "at": QKV}, L * (3 * D + 1)),
    ("snell", {"rank": 8, "at": LINEARS}, 1179648),
]  # fmt: skip


@pytest.fixture(scope="module")
def backbone() -> torch.nn.Module:
    with torch.device("meta"):
        return timm.create_model("vit_base_patch16_224", pretrained=False, num_classes=0)


@pytest.mark.parametrize(("method", "settings", "expected"), ROWS)
def test_counts_equal_the_closed_forms(backbone, method, settings, expected):
    assert counted(backbone, method, settings).parts == expected


@pytest.mark.parametrize("method", ["vera", "randlora", "fourierft"])
def test_frozen_bases_take_no_room_on_disk(backbone, method):
    assert counted(backbone, method, {}).buffers == 0


@pytest.mark.parametrize(
    ("method", "settings", "shapes"),
    [
        ("krona", {"at": "blocks.0.attn.q"}, {"A": (24, 32), "B": (32, 24)}),
        ("lokr", {"at": "blocks.0.attn.qkv"}, {"W1.B": (48, 24), "W2.B": (48, 8), "W2.A": (8, 32)}),
        ("hra", {"at": "blocks.0.mlp.fc2"}, {"U": (3072, 8)}),
        ("randlora", {"at": "blocks.0.mlp.fc2"}, {"l": (24, 32), "g": (24, 768)}),
        ("boft", {"at": "blocks.0.mlp.fc1", "factors": 2}, {"A": (2, 96, 8, 8), "gain": (3072,)}),
        ("fact-tt", {"at": "blocks.0.mlp.fc2"}, {"Sigma": (4, 16, 16)}),
    ],
)
def test_shapes(backbone, method, settings, shapes):
    with torch.device("meta"):
        host = Host(backbone, [(method, resolve("methods", method)(**settings))])
    ((_, part),) = host.parts.by_owner[method]["shared"].items()
    host.detach()
    assert {name: tuple(p.shape) for name, p in part.named_parameters()} == shapes


def counted(backbone, method, settings):
    with torch.device("meta"):
        host = Host(backbone, [(method, resolve("methods", method)(**settings))])
    counts = host.count()
    host.detach()
    return counts
