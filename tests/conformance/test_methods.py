"""Every registered method passes the kit: on a plain transformer, and on other families in rotation.

`GROUND` are the methods that prove the part kinds; they run on every family of `PROMISED`, others on one more. The
whole matrix, with the compilation of every method, is `benchmarks/conformance.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import pytest

from mtpeft.plugins import registry, resolve
from mtpeft.testing import check_method, method_checks, zoo

GROUND = (
    "full", "linear-probe", "bitfit", "lora", "dora", "hydra-lora", "adaptformer", "vpt-shallow", "vpt-deep", "ssf",
    "lst",
)  # fmt: skip
PROMISED = ("vit", "swin", "swinv2", "beit", "eva02", "convnext", "resnet")
OTHERS = tuple(family for family in zoo() if family != "vit")
COMPILED = ("dora", "hydra-lora", "adaptformer", "vpt-shallow", "vpt-deep", "lst")
SMALLER: dict[str, dict[str, Any]] = {"ranpac": {"projection": 64}}
"""What takes minutes at its published size."""
CONFIGURED: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("lora", "vit", {"rslora": True, "dropout": 0.2, "at": "linear | conv"}),
    ("lora", "swin", {"blocks": "last:1"}),
    ("hydra-lora", "vit", {"route": "task"}),
    ("hydra-lora", "eva02", {"route": "task"}),
    ("hydra-lora", "vit", {"route": "both", "dropout": 0.2}),
    ("hydra-lora", "convnext", {"route": "both"}),
    ("adaptformer", "vit-reg4", {"ln_in": True, "hidden": 8}),
    ("adaptformer", "swin", {"input": "raw"}),
    ("e2vpt", "vit", {"prune": 0.5, "prune_segments": 0.5}),
    ("ssf", "vit", {"init": "identity"}),
    ("ssf", "beit", {"init": "identity"}),
    ("bitfit", "swinv2", {"norm_bias": False}),
)


def everyday() -> Iterator[tuple[str, str, str]]:
    """``(method, family, scope)``; scopes take turns, and a method that is no ground takes the other one elsewhere."""
    for index, name in enumerate(sorted(registry("methods"))):
        scopes = get_args(get_type_hints(resolve("methods", name))["scope"])
        turns = scopes if name in GROUND else (scopes[(index + 1) % len(scopes)],)
        yield from ((name, "vit", scope) for scope in turns)
        rotated = PROMISED[1:] if name in GROUND else (OTHERS[index % len(OTHERS)],)
        yield from ((name, family, scopes[(index + turn) % len(scopes)]) for turn, family in enumerate(rotated))


@pytest.mark.parametrize(("method", "family", "scope"), list(everyday()))
def test_conformance(method: str, family: str, scope: str) -> None:
    check_method(method, [family], scopes=[scope], slow=False, settings=SMALLER.get(method))


@pytest.mark.parametrize(("method", "family", "settings"), CONFIGURED)
def test_conformance_as_configured(method: str, family: str, settings: dict[str, Any]) -> None:
    check_method(method, [family], slow=False, settings=settings)


@pytest.mark.parametrize("method", COMPILED)
def test_compiles_into_one_graph(method: str) -> None:
    (check,) = [c for c in method_checks(method, ["vit"], ["shared"]) if c.slow]
    check()


def test_the_ground_is_registered() -> None:
    assert set(GROUND) <= set(registry("methods"))
    assert set(PROMISED) <= set(zoo())
