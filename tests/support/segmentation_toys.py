"""What the tests of segmentation heads share: backbones' shapes, features and targets."""

from __future__ import annotations

import pytest
import torch

from mtpeft.api import Features, FeaturesInfo

VIT = FeaturesInfo(pooled=6, channels=(6,), strides=(8,), prefix=1, image_size=(32, 48))
COARSE = FeaturesInfo(pooled=6, channels=(6,), strides=(16,), prefix=1, image_size=(160, 96))
PYRAMID = FeaturesInfo(pooled=12, channels=(4, 6, 8, 12), strides=(4, 8, 16, 32), prefix=0, image_size=(64, 96))
NAMES = ("background", "a", "b")
every_info = pytest.mark.parametrize("info", [VIT, COARSE, PYRAMID], ids=["plain", "coarse", "hierarchical"])


def features(info: FeaturesInfo, count: int = 2) -> Features:
    generator = torch.Generator().manual_seed(0)
    grids = [(info.image_size[0] // stride, info.image_size[1] // stride) for stride in info.strides]
    maps = [torch.randn(count, c, *grid, generator=generator) for c, grid in zip(info.channels, grids, strict=True)]
    return Features(torch.randn(count, info.pooled, generator=generator), tuple(maps))


def target(mask, names=NAMES) -> dict:
    mask = torch.as_tensor(mask, dtype=torch.uint8)
    return {"mask": mask, "classes": names, "size": tuple(mask.shape)}
