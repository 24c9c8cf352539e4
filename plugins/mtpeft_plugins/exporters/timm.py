"""Merged checkpoints: plain timm weights with a task's parts folded in, and its classifier where timm has one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from mtpeft.api import Exported, Exporter, Features, Head, Run, write_file


@dataclass
class Timm(Exporter):
    """A checkpoint that plain timm loads: the task's parts folded in, and its head where timm's classifier is alike."""

    suffix = ".safetensors"

    def export(self, run: Run, task: str, path: Path) -> Exported:
        tensors, about = _merged(run, task)
        contiguous = {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, save(contiguous, {"format": "pt", "mtpeft": json.dumps(about)}))
        return Exported(_how(about, path), about)


def _merged(run: Run, task: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors under timm's own keys, and what must be known to load them."""
    tensors = run.host.merged_state(task)
    architecture = run.backbone.name.partition(".")[0]
    in_timm = timm.is_model(architecture)
    classes: tuple[str, ...] = ()
    if in_timm and (classifier := _classifier(run, task, architecture)):
        head = run.host.head_of(task)
        tensors |= {f"{classifier}.weight": head.weight.detach(), f"{classifier}.bias": head.bias.detach()}
        classes = head.classes
    image = run.backbone.image
    return tensors, {
        "backbone": run.backbone.name,
        "architecture": architecture if in_timm else run.config.backbone,
        "in_timm": in_timm,
        "sized": run.config.image_size is not None,
        "image_size": list(image.size),
        "mean": list(image.mean),
        "std": list(image.std),
        "num_classes": len(classes),
        "classes": list(classes),
    }


def _how(about: dict[str, Any], path: Path) -> str:
    """Python that loads it."""
    size = tuple(about["image_size"])
    inputs = f"# images: {size[0]} x {size[1]}, mean {about['mean']}, std {about['std']}"
    what = f"# outputs: {', '.join(about['classes']) or 'pooled features, without a head'}"
    if not about["in_timm"]:
        load = f'model = mtpeft.create_backbone("{about["architecture"]}", image_size={size}).module'
        state = f'model.load_state_dict(safetensors.torch.load_file("{path}"))'
        return "\n".join(["import mtpeft, safetensors.torch", "", load, state, inputs, what])
    settings = [f'"{about["architecture"]}"', f"num_classes={about['num_classes']}", f'checkpoint_path="{path}"']
    if about["sized"]:
        settings.insert(2, f"img_size={size}")
    return "\n".join(["import timm", "", f"model = timm.create_model({', '.join(settings)})", inputs, what])


def _classifier(run: Run, task: str, architecture: str) -> str:
    """The name of timm's classifier where it computes what the task's head does; else empty."""
    known = timm.get_pretrained_cfg(architecture)
    name = known.classifier if known else None
    head = run.host.head_of(task)
    if not isinstance(name, str) or not run.tasks[task].classifies or not _is_linear(head, run.host.info.pooled):
        return ""
    return name


@torch.no_grad()
def _is_linear(head: Head, width: int) -> bool:
    """Whether a head is ``pooled W^T + b`` with its own ``weight`` and ``bias``, found by trying."""
    parameters = dict(head.named_parameters())
    if set(parameters) != {"weight", "bias"} or parameters["weight"].shape[1:] != (width,):
        return False
    weight, bias = parameters["weight"], parameters["bias"]
    pooled = torch.randn(3, width, generator=torch.Generator().manual_seed(0)).to(weight)
    return torch.allclose(head(Features(pooled, ())), F.linear(pooled, weight, bias), atol=1e-5)
