"""What the tests of detection heads share: features, targets, and torchvision's models behind prepared maps."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from mtpeft.api import Features, FeaturesInfo

CLASSES = ("cat", "dog", "owl")
PLAIN = FeaturesInfo(16, (16,), (8,), 1, (64, 64))
WIDE = FeaturesInfo(16, (16,), (8,), 1, (48, 96))
HIERARCHICAL = FeaturesInfo(24, (8, 16, 24), (8, 16, 32), 0, (160, 160))


def features(info: FeaturesInfo, batch: int = 3, seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    sizes = [[-(-side // stride) for side in info.image_size] for stride in info.strides]
    maps = [torch.randn(batch, c, *size, generator=generator) for c, size in zip(info.channels, sizes, strict=True)]
    return Features(torch.randn(batch, info.pooled, generator=generator), tuple(maps))


def target(boxes, labels, classes=CLASSES):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {"boxes": boxes, "labels": torch.tensor(labels, dtype=torch.long), "classes": classes}


TARGETS = [
    target([[2, 3, 30, 40], [33, 20, 60, 44]], [0, 2]),
    target([], []),
    target([[10, 10, 22, 29], [5, 30, 47, 46], [40, 1, 60, 21]], [1, 1, 0]),
]


class Prepared(nn.Module):
    """A backbone for torchvision's models: it gives the maps it was told to."""

    def __init__(self, maps: list[torch.Tensor], out_channels: int = 32) -> None:
        super().__init__()
        self.maps, self.out_channels = maps, out_channels

    def forward(self, images):
        return OrderedDict((str(index), level) for index, level in enumerate(self.maps))


def as_it_is(info) -> dict:
    """Settings under which torchvision's models leave images of `info.image_size` alone."""
    height, width = info.image_size
    settings = {"min_size": min(height, width), "max_size": max(height, width), "size_divisible": 1}
    return settings | {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}


def images(info: FeaturesInfo, count: int) -> list[torch.Tensor]:
    return [torch.zeros(3, *info.image_size)] * count
