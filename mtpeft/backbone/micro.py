"""The embedded backbone: a small timm vision transformer, pre-trained on procedurally drawn scenes (`MICRO.md`).

It is built from timm's class directly and never enters timm's registry.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from mtpeft.errors import MtpeftError

WEIGHTS = Path(__file__).with_name("micro.safetensors")
SHA256 = "97896069434f0f9e9cb70c57ab0057ce22d5d1391dbe81039f5f11c592fc40ef"
"""The sha256 of the packaged file; `benchmarks/pretrain_micro.py` prints it with the weights it writes."""

IMAGE_SIZE = (64, 64)


def micro(image_size: tuple[int, int] | None = None, pretrained: bool = True) -> nn.Module:
    """The embedded micro ViT: patch 8, width 144, depth 5, 4 heads, a class token, 1.29 M parameters.

    Args:
        image_size: height and width in pixels, multiples of 8; 64 x 64 by default. Position embeddings are resampled.
        pretrained: load the packaged weights; else initialise from torch's global generator, as timm does.

    Raises:
        MtpeftError: the packaged weights are missing or damaged, or the size does not fit the patches.
    """
    image_size = _checked_size(image_size or IMAGE_SIZE)
    model = _build("procedural" if pretrained else "random")
    if pretrained:
        model.load_state_dict(_packaged_weights(WEIGHTS, SHA256))
    model.set_input_size(img_size=image_size)
    return model


def _build(tag: str) -> VisionTransformer:
    model: Any = VisionTransformer(  # torch declares tensors and modules alone
        img_size=IMAGE_SIZE,
        patch_size=8,
        embed_dim=144,
        depth=5,
        num_heads=4,
        num_classes=0,
        dynamic_img_size=True,
    )
    model.pretrained_cfg = {
        "architecture": "micro_vit_patch8_64",
        "tag": tag,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "input_size": (3, *IMAGE_SIZE),
        "interpolation": "bicubic",
        "num_classes": 0,
    }
    return model


def _checked_size(image_size: tuple[int, int]) -> tuple[int, int]:
    height, width = image_size
    if height % 8 or width % 8 or min(height, width) < 8:
        raise MtpeftError(
            f"the micro backbone cannot take images of {height} x {width} pixels: its patches are 8 x 8",
            hint=f"use a multiple of 8, such as {max(8, height // 8 * 8)} x {max(8, width // 8 * 8)}",
        )
    return height, width


def _packaged_weights(path: Path, sha256: str) -> dict[str, torch.Tensor]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MtpeftError(
            f"the packaged weights {path} cannot be read: {error.strerror}", hint="install mtpeft again"
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise MtpeftError(
            f"the packaged weights {path} are damaged: their sha256 is {found}, not {sha256}",
            hint="install mtpeft again, or use --weights random, which needs no file",
        )
    return load(data)
