"""What the segmentation heads share: one row of parameters for each class, a score of each class at each pixel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from mtpeft.api import Features, FeaturesInfo, Head
from mtpeft_tasks.maps import IGNORED
from mtpeft_tasks.names import grown, unseen

_STD = 0.01


class SegmentationHead(Head, ABC):
    """Features to something that gives each class a score at each pixel; one row of parameters for each class.

    What it gives out is the same for each sample whatever else the batch holds.

    Attributes:
        weight, bias: ``(K, ..., C)`` and ``(K, ...)``, one row for each class; made by `add_rows`.
    """

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(self, info: FeaturesInfo, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.size = tuple(info.image_size)

    @abstractmethod
    def extent(self, outputs: Any) -> tuple[int, int]:
        """Height and width of the masks that `loss` takes."""

    @abstractmethod
    def loss(self, outputs: Any, masks: Tensor, smoothing: float) -> dict[str, Tensor]:
        """Named scalar losses over the labelled pixels of ``masks (B, H, W) int64``; 0 where there is none.

        Args:
            masks: positions in ``classes``, 255 where nothing is labelled.
            smoothing: of the labels, in a cross-entropy over classes.
        """

    @abstractmethod
    def scores(self, outputs: Any) -> Tensor:
        """``(B, K, H, W)``: the largest is the class of a pixel."""

    def add_rows(self, *shape: int, std: float = _STD) -> None:
        """Draw ``weight (K, *shape)``, as those of later classes will be, and clear ``bias``."""
        self.std = std
        self.weight = nn.Parameter(torch.randn(len(self.classes), *shape) * std)
        self.bias = nn.Parameter(torch.zeros(len(self.classes), *shape[:-1]))

    def full_size(self, logits: Tensor) -> Tensor:
        """``(B, K, h, w)`` to the size of the input."""
        if logits.shape[-2:] == self.size:
            return logits
        return F.interpolate(logits, self.size, mode="bilinear", align_corners=False)

    def extend(self, classes: Sequence[str], info: FeaturesInfo | None = None) -> None:
        new = unseen(classes, self.classes)
        self.classes += new
        self.weight = nn.Parameter(grown(self.weight, len(new), self.std))
        self.bias = nn.Parameter(grown(self.bias, len(new)))


class PixelHead(SegmentationHead, ABC):
    """``logits (B, K, H, W)`` at the size of the input, trained by cross-entropy."""

    def of_map(self, map_: Tensor) -> Tensor:
        """Logits at full size from a map ``(B, C, h, w)``, by one row ``(C,)`` for each class."""
        return self.full_size(F.conv2d(map_, self.weight[..., None, None], self.bias))

    def extent(self, outputs: Tensor) -> tuple[int, int]:
        return outputs.shape[-2], outputs.shape[-1]

    def loss(self, outputs: Tensor, masks: Tensor, smoothing: float) -> dict[str, Tensor]:
        total = F.cross_entropy(
            outputs.float(), masks, ignore_index=IGNORED, label_smoothing=smoothing, reduction="sum"
        )
        return {"cross_entropy": total / (masks != IGNORED).sum().clamp(min=1)}

    def scores(self, outputs: Tensor) -> Tensor:
        return outputs


class OneMap(nn.Module):
    """Features to one map ``(B, width, h, w)``: the backbone's, normalised, projected and added on the finest grid.

    Args:
        info: widths and strides of the maps.
        width: channels of the output.
        finest: maps of a smaller stride are left out, unless there is no other.
    """

    def __init__(self, info: FeaturesInfo, width: int, finest: int) -> None:
        super().__init__()
        own = deepest(info.strides)
        self.maps = [index for index in own if info.strides[index] >= finest] or [own[-1]]
        self.stride = info.strides[self.maps[0]]
        channels = [info.channels[index] for index in self.maps]
        self.projections = nn.ModuleList(nn.Sequential(LayerNorm2d(c), nn.Conv2d(c, width, 1)) for c in channels)

    def forward(self, features: Features) -> Tensor:
        pairs = zip(self.projections, self.maps, strict=True)
        first, *others = [projection(features.maps[index]) for projection, index in pairs]
        return sum((resized(map_, first) for map_ in others), first)


def resized(map_: Tensor, like: Tensor) -> Tensor:
    """Bilinear, to the grid of another map."""
    size = like.shape[-2:]
    return map_ if map_.shape[-2:] == size else F.interpolate(map_, size, mode="bilinear", align_corners=False)


def convolution(channels: int, width: int, size: int = 3) -> nn.Sequential:
    """Convolution, normalisation over the channels of each cell, GELU."""
    layer = nn.Conv2d(channels, width, size, padding=size // 2, bias=False)
    return nn.Sequential(layer, LayerNorm2d(width), nn.GELU())


def deepest(strides: Sequence[int]) -> tuple[int, ...]:
    """Which maps are read: of one-stride backbones the last (deepest), else one for each stride, finest first."""
    last = {stride: index for index, stride in enumerate(strides)}
    return tuple(last[stride] for stride in sorted(last))


def upscale_for(stride: int, image_size: Sequence[int]) -> int:
    """The power of two that brings a stride to at most 2 pixels for images up to 128 pixels, 4 above."""
    upscale, aim = 1, 2 if max(image_size) <= 128 else 4
    while stride / upscale > aim:
        upscale *= 2
    return upscale
