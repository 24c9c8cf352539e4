"""Trained parameters of the ground methods on ViT-S, B and L: integers worked out by hand, and their formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import nn

from mtpeft.peft.host import Host
from mtpeft.plugins import resolve

Q_AND_V = {"at": "attn.q attn.v"}
FUSED = {"at": "attn.qkv"}
FOUR = {"at": "attn.qkv attn.proj mlp.fc1 mlp.fc2"}
SIX = {"at": "attn.q attn.k attn.v attn.proj mlp.fc1 mlp.fc2"}
LARGE, SMALL, BASE = "vit_large_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224"
SIZES = {SMALL: (384, 12), BASE: (768, 12), LARGE: (1024, 24)}  # width, blocks

ROWS: list[tuple[str, dict[str, Any], int]] = [
    ("full", {}, 85_798_656),
    ("linear-probe", {}, 0),
    ("bitfit", {}, 102_912),
    ("bitfit", {"norm_bias": False}, 83_712),
    ("adaptformer", {"hidden": 8}, 156_768),
    ("adaptformer", {"hidden": 64}, 1_189_632),
    ("adaptformer", {"hidden": 8, "ln_in": True}, 175_200),
    ("adaptformer", {"hidden": 64, "ln_in": True}, 1_208_064),
    ("vpt-shallow", {"tokens": 10}, 7_680),
    ("vpt-shallow", {"tokens": 50}, 38_400),
    ("vpt-shallow", {"tokens": 100}, 76_800),
    ("vpt-deep", {"tokens": 10}, 92_160),
    ("vpt-deep", {"tokens": 50}, 460_800),
    ("vpt-deep", {"tokens": 100}, 921_600),
    ("lora", {"rank": 4, **Q_AND_V}, 147_456),
    ("lora", {"rank": 8, **Q_AND_V}, 294_912),
    ("lora", {"rank": 16, **Q_AND_V}, 589_824),
    ("lora", {"rank": 8, **FUSED}, 294_912),
    ("lora", {"rank": 8, "at": "attn.qkv attn.proj"}, 442_368),
    ("lora", {"rank": 8, **FOUR}, 1_179_648),
    ("lora", {"rank": 8, **SIX}, 1_327_104),
    ("lora", {"rank": 8, "rslora": True, **Q_AND_V}, 294_912),
    ("dora", {"rank": 8, **Q_AND_V}, 313_344),
    ("dora", {"rank": 8, **FUSED}, 322_560),
    ("dora", {"rank": 8, **FOUR}, 1_262_592),
    ("hydra-lora", {"rank": 4, "heads": 3, **FOUR}, 1_446_912),
    ("hydra-lora", {"rank": 4, "heads": 4, **FOUR}, 1_843_200),
    ("hydra-lora", {"rank": 8, "heads": 3, **FOUR}, 2_700_288),
    ("ssf", {}, 205_824),
]
ELSEWHERE: list[tuple[str, str, dict[str, Any], int]] = [
    (SMALL, "full", {}, 21_665_664),
    (LARGE, "full", {}, 303_301_632),
    (SMALL, "ssf", {}, 102_912),
    (LARGE, "ssf", {}, 544_768),
    (SMALL, "lora", {"rank": 8, **Q_AND_V}, 147_456),
    (LARGE, "lora", {"rank": 8, **Q_AND_V}, 786_432),
]
FORMULAS: dict[str, tuple[dict[str, Any], Callable[[int, int], int]]] = {
    # d wide, L blocks; an MLP is 4 d wide, patches are 16 x 16 x 3
    "full": ({}, lambda d, L: L * (12 * d * d + 13 * d) + (16 * 16 * 3 + 1) * d + 198 * d + 2 * d),
    "bitfit": ({}, lambda d, L: L * (3 + 1 + 4 + 1 + 2) * d + 2 * d),
    "lora": ({"rank": 5, **FOUR}, lambda d, L: L * 5 * 16 * d),
    "dora": ({"rank": 5, **FOUR}, lambda d, L: L * (5 * 16 * d + 9 * d)),
    "hydra-lora": ({"rank": 5, "heads": 2, **FOUR}, lambda d, L: L * (5 * 7 * d + 2 * 5 * 9 * d + 2 * 7 * d)),
    "adaptformer": ({"hidden": 12}, lambda d, L: L * (2 * d * 12 + 12 + d)),
    "vpt-shallow": ({"tokens": 7}, lambda d, L: 7 * d),
    "vpt-deep": ({"tokens": 7}, lambda d, L: L * 7 * d),
    "ssf": ({}, lambda d, L: 22 * d * L + 4 * d),
    "linear-probe": ({}, lambda d, L: 0),
    "lst": ({"reduction": 8}, lambda d, L: _ladder(d, d // 8, L)),
}


def _ladder(d: int, n: int, blocks: int) -> int:
    """A side block ``n`` wide, a projection into it and a gate for each block; a norm and the way back."""
    return blocks * (12 * n * n + 13 * n + d * n + n + 1) + 2 * n + n * d + d


@pytest.fixture(scope="module")
def backbones() -> dict[str, nn.Module]:
    with torch.device("meta"):
        return {name: timm.create_model(name, pretrained=False, num_classes=0) for name in SIZES}


def attached(backbone: nn.Module, method: str, settings: dict[str, Any], tasks: tuple[str, ...] = ("one",)) -> Host:
    with torch.device("meta"):
        host = Host(backbone, [(method, resolve("methods", method)(**settings))], tasks)
    host.detach()
    return host


@pytest.mark.parametrize(("method", "settings", "count"), ROWS)
def test_counts_on_vit_base(backbones, method: str, settings: dict[str, Any], count: int) -> None:
    host = attached(backbones[BASE], method, settings)
    assert host.count().parts == count
    assert sum(p.numel() for p in host.trainable(["one"]).values()) == count


@pytest.mark.parametrize(("backbone", "method", "settings", "count"), ELSEWHERE)
def test_counts_on_small_and_large(backbones, backbone: str, method: str, settings: dict[str, Any], count: int) -> None:
    assert attached(backbones[backbone], method, settings).count().parts == count


@pytest.mark.parametrize("backbone", SIZES)
@pytest.mark.parametrize("method", FORMULAS)
def test_counts_equal_the_formula(backbones, backbone: str, method: str) -> None:
    settings, formula = FORMULAS[method]
    assert attached(backbones[backbone], method, settings).count().parts == formula(*SIZES[backbone])


@pytest.mark.parametrize(("method", "settings", "count"), [row for row in ROWS if row[0] != "linear-probe"])
def test_each_task_owns_as_much(backbones, method: str, settings: dict[str, Any], count: int) -> None:
    counts = attached(backbones[BASE], method, {**settings, "scope": "task"}, ("one", "two", "three")).count()
    assert counts.per_task == {"one": count, "two": count, "three": count}
    assert counts.shared == 0


@pytest.mark.parametrize("route", ["task", "both"])
def test_a_router_by_task_costs_its_gates(backbones, route: str) -> None:
    host = attached(backbones[BASE], "hydra-lora", {"route": route, "heads": 3, **FOUR}, ("one", "two"))
    by_token = 3 * 12 * 7 * 768
    assert host.count().per_task == {"one": 12 * 4 * 3, "two": 12 * 4 * 3}
    assert host.count().shared == (1_446_912 if route == "both" else 1_446_912 - by_token)


@pytest.mark.parametrize(
    ("settings", "shapes"),
    [
        ({"rank": 8, **Q_AND_V}, {"attn.q": (768, 768), "attn.v": (768, 768)}),
        ({"rank": 8, **FUSED}, {"attn.qkv": (768, 2304)}),
        (
            {"rank": 8, **FOUR},
            {"attn.qkv": (768, 2304), "attn.proj": (768, 768), "mlp.fc1": (768, 3072), "mlp.fc2": (3072, 768)},
        ),
        ({"rank": 32, **Q_AND_V}, {"attn.q": (768, 768), "attn.v": (768, 768)}),
    ],
)
def test_lora_sits_where_it_says(backbones, settings: dict[str, Any], shapes: dict[str, tuple[int, int]]) -> None:
    """Counts cannot tell: q and v at rank 8 cost as much as a fused qkv, and four linears as q and v at rank 32."""
    host, rank, expected = attached(backbones[BASE], "lora", settings), settings["rank"], {}
    for block in range(12):
        for site, (inputs, outputs) in shapes.items():
            expected[f"lora/blocks.{block}.{site}/A"] = (rank, inputs)
            expected[f"lora/blocks.{block}.{site}/B"] = (outputs, rank)
    assert {name: tuple(tensor.shape) for name, tensor in host.tensors("shared").items()} == expected
