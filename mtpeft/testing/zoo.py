"""Tiny timm models with random weights, one for each family: what a method is tried on.

Weights are drawn so that everything that runs can be seen in the output: gains that timm initialises to zero are near
one, biases and running statistics are random.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from timm.layers import LayerScale
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.mobilenetv3 import MobileNetV3
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

_GAINS = ("gamma", "layer_scale")
_PLAIN = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
_STILL = {"drop_path_rate": 0.0}
_WINDOWS = {"patch_size": 4, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 2), **_STILL}
_STAGES = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}
_NARROW = {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32), "stem_width": 8}


def zoo() -> dict[str, Callable[[], nn.Module]]:
    """Family -> a function that builds its model, the same bits on every call; no classifier, eval mode.

    The first of them are plain transformers; ``vit-gap`` has no class token and images that are not square.
    """
    return {
        "vit": _entry("vit_tiny_patch16_224", 32, **_PLAIN),
        "vit-reg4": _entry("vit_small_patch14_reg4_dinov2", 32, **_PLAIN),
        "vit-gap": _entry("vit_base_patch16_siglip_gap_224", (32, 48), **_PLAIN),
        "siglip": _entry("vit_base_patch16_siglip_224", 32, **_PLAIN),
        "deit": _entry("deit_tiny_distilled_patch16_224", 32, **_PLAIN),
        "beit": _entry("beit_base_patch16_224", 32, **_PLAIN),
        "eva02": _entry("eva02_tiny_patch14_224", 32, **_PLAIN),
        "eva02-base": _entry("eva02_base_patch14_224", 32, **_PLAIN),
        "dinov3": _entry("vit_small_patch16_dinov3", 32, **_PLAIN),
        "swin": _entry("swin_tiny_patch4_window7_224", 32, **_WINDOWS),
        "swinv2": _entry("swinv2_tiny_window8_256", 32, **_WINDOWS),
        "hiera": _entry("hiera_tiny_224", 64, embed_dim=16, stages=(1, 1, 1, 1)),
        "pvt": _entry("pvt_v2_b0", None, depths=(1, 1, 1, 1), embed_dims=(8, 16, 24, 32), num_heads=(1, 2, 2, 2)),
        "maxvit": _entry("maxvit_pico_rw_256", 64, embed_dim=(32, 32), depths=(1, 1), stem_width=8, **_STILL),
        "convnext": _entry("convnext_tiny", None, **_STAGES),
        "resnet": _entry("resnet18", None, **_NARROW),
        "resnet50": _entry("resnet50", None, **_NARROW),
        "mobilenet": partial(_build, _mobilenet, (64, 64), {}),
        "efficientnet": _entry("test_efficientnet", None),
    }


def _entry(name: str, size: int | tuple[int, int] | None, **settings: Any) -> Callable[[], nn.Module]:
    """``size``: of the images in pixels; None where the architecture takes any, which are then 64 x 64."""
    if size is not None:
        settings["img_size"] = (size, size) if isinstance(size, int) else size
    return partial(_build, name, settings.get("img_size", (64, 64)), settings)


def _mobilenet() -> nn.Module:
    """MobileNetV3's blocks, one for each stage: depthwise, squeezed and excited, inverted, with hard-swish."""
    stages = [["ds_r1_k3_s2_e1_c8_se0.25_nre"], ["ir_r1_k3_s2_e2_c16_nre"], ["ir_r1_k5_s2_e2_c24_se0.25"],
              ["ir_r1_k5_s2_e2_c32_se0.25"], ["cn_r1_k1_s1_c48"]]  # fmt: skip
    model: Any = MobileNetV3(
        decode_arch_def(stages), num_classes=0, stem_size=8, num_features=64, act_layer=nn.Hardswish
    )
    model.pretrained_cfg = {"architecture": "mobilenetv3", "classifier": "classifier"}
    return model


def _build(name: str | Callable[[], nn.Module], size: tuple[int, int], settings: dict[str, Any]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = name() if callable(name) else timm.create_model(name, pretrained=False, num_classes=0, **settings)
        for module in model.modules():
            _draw(module)
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, *size)}
    return model.eval()


@torch.no_grad()
def _draw(module: nn.Module) -> None:
    """New values for the module's own tensors."""
    for name, parameter in module.named_parameters(recurse=False):
        if isinstance(module, nn.Linear | nn.Conv2d) and name == "weight":
            gain = 2 if isinstance(module, nn.Conv2d) else 1
            nn.init.normal_(parameter, std=math.sqrt(gain / parameter[0].numel()))
        elif name.startswith(_GAINS) or (parameter.ndim == 1 and name == "weight") or isinstance(module, LayerScale):
            nn.init.normal_(parameter, 1, 0.1)
        elif name.endswith("bias") or not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    if isinstance(module, _NormBase) and module.running_mean is not None and module.running_var is not None:
        nn.init.normal_(module.running_mean, std=0.1)
        nn.init.uniform_(module.running_var, 0.5, 1.5)
