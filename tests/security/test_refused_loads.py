"""Rows of heads follow the names of classes on load, and a refused load changes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import mtpeft
from mtpeft.errors import MtpeftError
from mtpeft.files import file_sha256
from mtpeft.peft.host import Host
from mtpeft.testing.zoo import zoo

CLASSES = ("w", "x", "y", "z")
TYPES = ("cls", "multi-label", "seg")


def made(type: str, classes: tuple[str, ...], method: str = "lora", seed: int = 0) -> Host:
    torch.manual_seed(seed)
    return mtpeft.adapt(zoo()["vit"](), method, {"a": mtpeft.head(type, classes)}).eval()


def outputs(host: Host) -> Tensor:
    """One number for each class, in the order of the names."""
    images = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)[..., : host.image_size[0], : host.image_size[1]]
    with torch.no_grad():
        logits = host.predict(images, "a")
    rows = logits.flatten(2).sum(2)[0] if logits.ndim > 2 else logits[0]
    return rows[[host.head_of("a").classes.index(name) for name in sorted(host.head_of("a").classes)]]


@pytest.mark.parametrize("type", TYPES)
def test_rows_follow_names(type: str, tmp_path: Path) -> None:
    saved = made(type, CLASSES, seed=1)
    saved.save(tmp_path / "adapter")

    @settings(max_examples=6, deadline=None)
    @given(st.permutations(CLASSES), st.integers(1, 4))
    def check(order: list[str], count: int) -> None:
        host = made(type, tuple(order[:count]), seed=2)
        host.load(tmp_path / "adapter")
        assert host.head_of("a").classes == CLASSES
        torch.testing.assert_close(outputs(host), outputs(saved))

    check()


def everything(host: Host) -> dict[str, Any]:
    """All that a load could change."""
    own = host.ownership
    return {
        "tensors": {name: tensor.detach().clone() for name, tensor in host.state_dict(keep_vars=True).items()},
        "trainable": {name for name, parameter in host.named_parameters() if parameter.requires_grad},
        "heads": {name: (id(head), tuple(head.classes)) for name, head in own.heads.items()},
        "of_task": dict(own.heads.of_task),
        "groups": set(own.heads.groups),
        "tasks": list(own.tasks),
        "frozen": set(own.frozen),
        "owners": {owner: list(own.parts.tensors(owner)) for owner in own.owners},
        "kept": {name: dict(routine.kept()) for name, routine in host.routines.items()},
    }


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, Tensor):
        assert torch.equal(one, other) and one.dtype == other.dtype
    else:
        assert one == other


def described(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tree = json.loads((folder / "adapter.json").read_text())
        change(tree)
        (folder / "adapter.json").write_text(json.dumps(tree))

    return spoil


def tensors(name: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path], None]:
    """Another file whose sha256 is right."""

    def spoil(folder: Path) -> None:
        save_file(change(load_file(folder / name)), folder / name)
        described(lambda tree: tree["files"].update({name: file_sha256(folder / name)}))(folder)

    return spoil


def wider(held: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: torch.cat([value, value]) for key, value in held.items()}


REFUSED: dict[str, Callable[[Path], None]] = {
    "another backbone": described(lambda tree: tree["backbone"].update(sha256="0" * 64)),
    "other settings": described(lambda tree: tree["methods"][0]["settings"].update(rank=3)),
    "another method": described(lambda tree: tree["methods"][0].update(name="dora")),
    "a class that is not there": described(lambda tree: tree["heads"]["a"].update(classes=["w", "x", "q", "r"])),
    "a class twice": described(lambda tree: tree["heads"]["a"].update(classes=["w", "w", "y", "z"])),
    "a file that is gone": lambda folder: (folder / "task.b.safetensors").unlink(),
    "shared parts of another shape": tensors("shared.safetensors", wider),
    "no shared parts": tensors("shared.safetensors", lambda held: {}),
    "a head of another shape": tensors("head.a.safetensors", wider),
    "a head without bias": tensors("head.a.safetensors", lambda held: {"weight": held["weight"]}),
    "numbers that are not finite": tensors("head.a.safetensors", lambda held: {k: v / 0 for k, v in held.items()}),
    "whole numbers": tensors("shared.safetensors", lambda held: {k: v.int() for k, v in held.items()}),
    "a task too many": described(lambda tree: tree["tasks"].append("c")),
}


SHARED_KINDS = ("shared parts of another shape", "no shared parts", "whole numbers")


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("classes", [CLASSES, ("z", "w")])
@pytest.mark.parametrize("method", ["lora", "lora@task"])
def test_a_refused_load_changes_nothing(kind: str, classes: tuple[str, ...], method: str, tmp_path: Path) -> None:
    if method == "lora@task" and kind in SHARED_KINDS:
        pytest.skip("nothing is shared")
    saved = made("cls", CLASSES, method, seed=1)
    saved.add_task("b")
    saved.freeze("a")
    saved.save(tmp_path / "adapter")
    REFUSED[kind](tmp_path / "adapter")
    host = made("cls", classes, method, seed=2)
    before = everything(host)
    with pytest.raises(MtpeftError):
        host.load(tmp_path / "adapter")
    assert_same(before, everything(host))
    assert not any(isinstance(module, nn.Module) and module.training for module in host.modules())


def test_an_adapter_that_a_refusal_spoilt_nothing_of_loads_then(tmp_path: Path) -> None:
    saved, host = made("cls", CLASSES, seed=1), made("cls", ("z", "w"), seed=2)
    saved.save(tmp_path / "good")
    shutil.copytree(tmp_path / "good", tmp_path / "bad")
    REFUSED["a head of another shape"](tmp_path / "bad")
    with pytest.raises(MtpeftError):
        host.load(tmp_path / "bad")
    host.load(tmp_path / "good")
    torch.testing.assert_close(outputs(host), outputs(saved))
