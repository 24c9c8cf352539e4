"""One probing pass over a backbone: which modules are called, and how their activations lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import timm.data
import torch
from torch import Tensor, nn

from mtpeft.backbone.extract import Extractor, evaluating, input_channels

_CHANNELS_FIRST = (
    nn.Conv2d,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.AdaptiveAvgPool2d,
    nn.MaxPool2d,
    nn.AvgPool2d,
)


@dataclass
class Trace:
    """What a pass showed.

    Attributes:
        called: paths of the modules whose hooks fired.
        widths: path -> channels of its output.
        shapes: path -> shape of its output for one image.
        channels_first: paths whose activations are ``(B, C, H, W)``.
        keeping: paths of modules whose output has the shape of their input.
    """

    called: set[str] = field(default_factory=set)
    widths: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    channels_first: set[str] = field(default_factory=set)
    keeping: set[str] = field(default_factory=set)

    @staticmethod
    @torch.no_grad()
    def of(backbone: nn.Module, image_size: tuple[int, int] | None = None) -> Trace:
        """Run ``backbone`` once on an empty image and watch; it is left as it was."""
        trace, open_modules = Trace(), []
        handles = []
        for path, module in backbone.named_modules():
            handles.append(module.register_forward_pre_hook(lambda m, a, path=path: open_modules.append(path)))
            handles.append(module.register_forward_hook(trace._closing(path, open_modules)))
        try:
            with evaluating(backbone):
                run_once(backbone, image_size)
        finally:
            for handle in handles:
                handle.remove()
        return trace

    def _closing(self, path: str, open_modules: list[str]) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            open_modules.pop()
            self.called.add(path)
            if not isinstance(output, Tensor):
                return
            if output.ndim == 4 and self._lies_first(module, path):
                self.channels_first.add(path)
            self.shapes[path] = tuple(output.shape)
            if args and isinstance(args[0], Tensor) and args[0].shape == output.shape:
                self.keeping.add(path)
            self.widths[path] = output.shape[1 if path in self.channels_first else -1]

        return note

    def _lies_first(self, module: nn.Module, path: str) -> bool:
        """A layer lies as its type says, a composite module as its first called layer with parameters does."""
        if isinstance(module, _CHANNELS_FIRST) or "Norm2d" in type(module).__name__:
            return True
        inner = (
            f"{path}.{name}" if path else name for name, child in module.named_children() if _has_parameters(child)
        )
        return next((child in self.channels_first for child in inner if child in self.called), False)


def run_once(backbone: nn.Module, image_size: tuple[int, int] | None = None, batch: int = 1) -> None:
    """One forward pass on zeros, through the same door that `Extractor` uses."""
    size = image_size or native_size(backbone)
    parameter = next(backbone.parameters())
    images = torch.zeros(batch, input_channels(backbone), *size, device=parameter.device, dtype=parameter.dtype)
    Extractor(backbone, size)(backbone, images)


def native_size(backbone: nn.Module) -> tuple[int, int]:
    """Height and width the backbone was built for, in pixels."""
    embedded = getattr(getattr(backbone, "patch_embed", None), "img_size", None)
    if embedded:
        return tuple(embedded)
    return tuple(timm.data.resolve_model_data_config(backbone)["input_size"][1:])


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
