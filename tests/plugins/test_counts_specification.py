"""Parameter counts of the specification and unified methods on ViT-B/16, against closed forms."""

from __future__ import annotations

import pytest
import timm
import torch

from mtpeft.peft.host import Host
from mtpeft.plugins import resolve

D, L, M = 768, 12, 3072  # width, blocks, hidden width of the MLP
BLOCK = 12 * D * D + 13 * D  # 4 D^2 + 2 D M weights, 4 D + M + D biases, two norms
BITFIT = L * (3 * D + D + M + D + 2 * D) + 2 * D
NORMS = (2 * L + 1) * 2 * D

ROWS = [
    ("partial-k", {}, BLOCK, 7_087_872),
    ("partial-k", {"k": 2, "final_norm": True}, 2 * BLOCK + 2 * D, None),
    ("attn-only", {}, L * (4 * D * D + 4 * D), 28_348_416),
    ("ln-tune", {}, NORMS, 38_400),
    ("ln-tune", {"bias": False}, NORMS // 2, None),
    ("difffit", {}, BITFIT + NORMS // 2 + 2 * L * D, 140_544),
    ("ia3", {}, L * (2 * D + M), 55_296),
    ("attnscale", {}, L * 12 + NORMS, None),
    ("adapterbias", {}, L * (D + M + 1), None),
    ("lora", {"rank": 8, "init": "olora", "at": "attn.qkv"}, L * 8 * (D + 3 * D), 294_912),
    ("lora", {"rank": 8, "init": "gaussian"}, 2 * L * 8 * 2 * D, 294_912),
    ("lora-fa", {"rank": 8}, 2 * L * 8 * D, None),
    ("mam", {"tokens": 10, "hidden": 8}, 2 * L * 10 * D + L * (2 * D * 8 + 8 + D), 341_088),
    ("u-tuning", {"hidden": 8, "at": "mlp"}, L * (2 * D * 8 + 8 + D), 156_768),
    ("u-tuning", {"tuner": "prefix", "tokens": 10}, 2 * 2 * L * 10 * D, None),
    ("u-tuning", {"tuner": "prompt", "tokens": 10}, 2 * L * 11 * D, None),
    ("gist", {}, D, None),
    ("gps", {"k": 1}, 2 * (L * (5 * D + M) + D), 167_424),
    ("gps", {"k": 3}, 4 * (L * (5 * D + M) + D), None),
]


@pytest.fixture(scope="module")
def backbone() -> torch.nn.Module:
    with torch.device("meta"):
        return timm.create_model("vit_base_patch16_224", pretrained=False, num_classes=0)


@pytest.mark.parametrize(("method", "settings", "formula", "published"), ROWS)
def test_counts_equal_the_closed_form(backbone, method, settings, formula, published):
    with torch.device("meta"):
        host = Host(backbone, [(method, resolve("methods", method)(**settings))], ["task"])
    counted = host.count().parts
    host.detach()
    assert counted == formula
    assert published in (None, formula)


@pytest.mark.parametrize("form", ["lora", "adapter"])
def test_spt_stays_within_its_budget(form):
    backbone = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0, depth=3)
    host = Host(backbone, [("spt", resolve("methods", "spt")(form=form, budget=30_000))], ["task"])
    assert 15_000 < host.count().parts <= 30_000
