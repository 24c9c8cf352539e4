"""Anchors in the middle of the cells, of sizes that follow the image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from mtpeft.api import FeaturePyramid, FeaturesInfo

RATIOS = (0.5, 1.0, 2.0)
_STEP = 1.6  # a box between two sizes so far apart still has an IoU of 1 / 1.6 with one of them


class CellAnchors(AnchorGenerator):
    """The same boxes around the centre of each cell of a level.

    torchvision's stand at the cells' upper left corners, have whole numbers of pixels, and are wrong where a map's size
    does not divide the image's.

    Args:
        strides: pixels per cell of each level, finest first.
        sizes: of each level's anchors (the square root of their area), in pixels; by default one of its stride.
        ratios: height over width of the anchors of each size.
    """

    def __init__(
        self, strides: Sequence[int], sizes: Sequence[Sequence[float]] = (), ratios: Sequence[float] = (1.0,)
    ) -> None:
        sizes = sizes or [(stride,) for stride in strides]
        super().__init__(tuple(map(tuple, sizes)), (tuple(ratios),) * len(strides))
        self.strides = tuple(strides)

    def generate_anchors(self, scales, aspect_ratios, dtype=torch.float32, device=torch.device("cpu")):  # noqa: B008
        """As torchvision's, not rounded: ``(R S, 4)`` around (0, 0)."""
        half = torch.tensor(scales, dtype=dtype, device=device) / 2
        root = torch.tensor(aspect_ratios, dtype=dtype, device=device).sqrt()[:, None]
        width, height = (half / root).flatten(), (half * root).flatten()
        return torch.stack([-width, -height, width, height], dim=1)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        return [self.of(feature_maps)] * len(image_list.image_sizes)

    def of(self, maps: Sequence[Tensor]) -> Tensor:
        """The anchors ``(P, 4)`` of all levels, in pixels; those of one cell stand together."""
        levels = zip(maps, self.strides, self.cell_anchors, strict=True)
        return torch.cat([_around_centres(level, stride, boxes) for level, stride, boxes in levels])

    def counts(self, maps: Sequence[Tensor]) -> list[int]:
        """Anchors of each level."""
        levels = zip(maps, self.num_anchors_per_location(), strict=True)
        return [level.shape[-2] * level.shape[-1] * each for level, each in levels]


def anchors_for(info: FeaturesInfo, strides: Sequence[int], scales: int) -> CellAnchors:
    """Anchors of three shapes and ``scales`` sizes a level (0: see `ladder`), by default on `roomy_strides`."""
    strides = sorted(set(strides)) or roomy_strides(info)
    return CellAnchors(strides, ladder(info.image_size, strides, scales), RATIOS)


def roomy_strides(info: FeaturesInfo) -> tuple[int, ...]:
    """The pyramid's default strides, less the coarse ones that leave an image a single cell."""
    finest, *others = FeaturePyramid.default_strides(info)
    return (finest, *(stride for stride in others if 2 * stride <= max(info.image_size)))


def ladder(image_size: Sequence[int], strides: Sequence[int], scales: int = 0) -> list[tuple[float, ...]]:
    """Sizes of anchors for each level, in equal ratios from twice the finest stride to the image's longer side.

    Args:
        scales: sizes of each level; 0 takes as many as keep the ratio of neighbours at most 1.6.
    """
    least = 2.0 * strides[0]
    span = max(max(image_size) / least, 1.0)
    scales = scales or math.ceil((math.log(span, _STEP) + 1) / len(strides))
    steps = max(scales * len(strides) - 1, 1)
    sizes = [least * span ** (step / steps) for step in range(scales * len(strides))]
    return [tuple(sizes[start : start + scales]) for start in range(0, len(sizes), scales)]


def centred_in(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Which anchors ``(P,) bool`` have their centre in one of the boxes ``(N, 4)``."""
    centres = (anchors[:, None, :2] + anchors[:, None, 2:]) / 2  # (P, 1, 2)
    return ((centres >= boxes[:, :2]) & (centres <= boxes[:, 2:])).all(-1).any(1)


def overlooked(anchors: Tensor, target: Mapping[str, Tensor]) -> Tensor:
    """Which anchors ``(P,) bool`` look at what a target says to ignore, and at none of its boxes."""
    if "ignored" not in target:
        return anchors.new_zeros(len(anchors), dtype=torch.bool)
    return centred_in(anchors, target["ignored"]) & ~centred_in(anchors, target["boxes"])


def _around_centres(level: Tensor, stride: int, boxes: Tensor) -> Tensor:
    rows, columns = ((torch.arange(side, device=level.device) + 0.5) * stride for side in level.shape[-2:])
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    centres = torch.stack([x, y, x, y], dim=-1)  # (H, W, 4)
    return (centres[:, :, None] + boxes.to(level.device)).reshape(-1, 4)
