"""Weights out of files: what timm makes of them, and nothing that a pickle would run."""

from __future__ import annotations

import os
import pickle
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from mtpeft.backbone import create_backbone
from mtpeft.errors import MtpeftError, UsageError

VIT = "vit_tiny_patch16_224.augreg_in21k"
SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 3}
ARCHITECTURES: dict[str, tuple[str, int | None, dict[str, Any]]] = {
    "vit": (VIT, 96, SMALL),
    "vit at its own size": (VIT, None, SMALL),
    "swin": ("swin_tiny_patch4_window7_224.ms_in1k", 64, {"embed_dim": 24, "depths": (1, 1), "num_heads": (1, 2)}),
    "resnet": ("resnet10t.c3_in1k", 64, {}),
    "eva02": ("eva02_tiny_patch14_224.mim_in22k", 56, SMALL),
    "4 channels": (VIT, 96, SMALL | {"in_chans": 4}),
}


def as_published(
    name: str, options: dict[str, Any], file: Path, wrap: Callable[[dict], Any] = lambda state: state
) -> Path:
    """Weights of a whole model, classifier included, at its own size and with three channels."""
    torch.manual_seed(1)
    own = {key: value for key, value in options.items() if key != "in_chans"}
    state = timm.create_model(name, pretrained=False, **own).state_dict()
    torch.save(wrap(state), file) if file.suffix != ".safetensors" else save_file(state, file)
    return file


@pytest.mark.parametrize("which", ARCHITECTURES)
@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_what_timm_makes_of_a_file_is_what_we_make(which: str, ending: str, tmp_path: Path) -> None:
    """State dict filters, resampled positions, the classifier left out: equal to timm's own loading, to the bit."""
    name, size, options = ARCHITECTURES[which]
    file = as_published(name, options, tmp_path / f"weights{ending}")
    sized = {"img_size": size} if size and "resnet" not in name else {}
    overlay = {"pretrained_cfg_overlay": {"file": str(file)}}
    theirs = timm.create_model(name, pretrained=True, num_classes=0, **overlay, **sized, **options)
    made = create_backbone(name, weights=file, image_size=size, options=options)
    ours = made.module.state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert all(torch.equal(ours[key], tensor) for key, tensor in theirs.state_dict().items())
    config: Any = made.module.pretrained_cfg
    assert made.name == name and "state_dict" not in config
    assert {k: v for k, v in theirs.pretrained_cfg.items() if k != "file"} == config


def _checkpoint(state: dict) -> dict:
    """What a training script writes: wrapped names, the average beside the last, and its arguments."""
    wrapped = {f"module.{key}": tensor for key, tensor in state.items()}
    last = {key: torch.zeros_like(tensor) for key, tensor in wrapped.items()}
    return {"state_dict": last, "state_dict_ema": wrapped, "epoch": 3, "args": Namespace(lr=0.1)}


def test_checkpoints_of_training_scripts_load(tmp_path: Path) -> None:
    plain = create_backbone("resnet10t", weights=as_published("resnet10t", {}, tmp_path / "a.pth"))
    wrapped = create_backbone("resnet10t", weights=as_published("resnet10t", {}, tmp_path / "b.pth", _checkpoint))
    assert plain.sha256 == wrapped.sha256


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


HIDDEN: dict[str, Callable[[Any], Any]] = {
    "alone": lambda payload: payload,
    "as a value": lambda payload: {"x": payload},
    "beside tensors": lambda payload: {"state_dict": {"weight": torch.ones(2)}, "args": payload},
    "in a namespace": lambda payload: {"state_dict": {"weight": torch.ones(2)}, "args": Namespace(x=payload)},
}


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("ending", ["pth", "bin", "safetensors", "npy"])
@pytest.mark.parametrize("save", ["torch", "torch legacy", "pickle", "system"])
def test_a_pickle_runs_nothing(hidden: str, ending: str, save: str, tmp_path: Path) -> None:
    file, touched = tmp_path / f"weights.{ending}", tmp_path / "touched"
    content = HIDDEN[hidden](Payload(touched))
    if save == "system":
        file.write_bytes(b"cposix\nsystem\n(S'touch %s'\ntR." % os.fsencode(touched))
    elif save == "pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=save == "torch")
    with pytest.raises(MtpeftError) as refused:
        create_backbone("resnet10t", weights=file)
    assert not touched.exists()
    assert "\n" not in refused.value.message and str(file) in refused.value.message and refused.value.hint


def test_arrays_of_objects_run_nothing(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    np.savez(tmp_path / "weights.npz", x=np.array([Payload(touched)], dtype=object))
    with pytest.raises(MtpeftError, match="NumPy arrays"):
        create_backbone(VIT, weights=tmp_path / "weights.npz")
    assert not touched.exists()


@pytest.mark.parametrize(
    "option",
    [
        "checkpoint_path",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "pretrained",
        "cache_dir",
        "pretrained_strict",
        "pretrained_filter_fn",
        "features_only",
    ],
)
def test_an_option_does_not_say_where_weights_are(option: str, tmp_path: Path) -> None:
    """``backbone_options`` of a stranger's config.toml reach timm, which would load a ``checkpoint_path`` by itself."""
    torch.save(Payload(tmp_path / "touched"), tmp_path / "weights.pth")
    with pytest.raises(UsageError, match="no option of the backbone"):
        create_backbone("resnet10t", pretrained=False, options={option: str(tmp_path / "weights.pth")})
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet10t.c3_in1k", "local-dir:/tmp/model", "timm/resnet10t"])
def test_no_hub_beside_a_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="where its weights are"):
        create_backbone(name, weights=as_published("resnet10t", {}, tmp_path / "weights.pth"))


@pytest.mark.parametrize("content", [{}, {"state_dict": {}}, [1, 2], {3: torch.ones(1)}, torch.ones(3), {"model": 4}])
def test_what_holds_no_state_dict_is_refused(content: Any, tmp_path: Path) -> None:
    """An empty one must not send timm to its hub."""
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(MtpeftError, match="holds no state dict"):
        create_backbone("resnet10t", weights=tmp_path / "weights.pth")


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_only_a_regular_file_is_opened(ending: str, tmp_path: Path) -> None:
    fifo = tmp_path / f"weights.{ending}"
    os.mkfifo(fifo)
    (tmp_path / f"device.{ending}").symlink_to("/dev/zero")
    for file in (fifo, tmp_path / f"device.{ending}", tmp_path, tmp_path / "absent"):
        with pytest.raises(MtpeftError, match="no weights file"):
            create_backbone("resnet10t", weights=file)


@pytest.mark.parametrize("size", [10**6, 10**9, (224, 10**6), 0, -1])
def test_absurd_image_sizes_are_refused_at_once(size: Any) -> None:
    start = time.perf_counter()
    with pytest.raises(UsageError, match="no size of images"):
        create_backbone(VIT, pretrained=False, image_size=size)
    assert time.perf_counter() - start < 2
