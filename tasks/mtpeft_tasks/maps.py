"""Targets given for each pixel, and how each moves with its image.

Maps keep their values: a pixel takes those of its nearest neighbour, so depth is not rescaled with the image, and what
is missing is not mixed with what is not.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

IGNORED = 255
BACKGROUND = "background"
"""The class of pixels that are nothing else."""


class Map(tv_tensors.Mask):
    """Values ``(..., H, W)``: the positions of classes, or 0 and 1; 255 where there is none."""

    missing = float(IGNORED)

    @staticmethod
    def labelled(values: Tensor) -> Tensor:
        """Which pixels ``(H, W) bool`` of the values ``(K, H, W)`` say something."""
        return (values != IGNORED).all(0)

    def mirrored(self) -> Tensor:
        """Of the image whose left is its right."""
        return F.horizontal_flip(self)

    def resized(self, height: int, width: int) -> Tensor:
        """Of the image at another size."""
        return F.resize(self, [height, width], interpolation=InterpolationMode.NEAREST)


class Depth(Map):
    """Distances ``(H, W) float``; 0 or not a number where there is none."""

    missing = 0.0

    @staticmethod
    def labelled(values: Tensor) -> Tensor:
        return (values.isfinite() & (values > 0)).all(0)


class Normals(Map):
    """Vectors ``(3, H, W) float``: x to the right, then y and z as the data has them; zeros where there is none."""

    missing = 0.0

    @staticmethod
    def labelled(values: Tensor) -> Tensor:
        return values.isfinite().all(0) & (values != 0).any(0)

    def mirrored(self) -> Tensor:
        flipped = F.horizontal_flip(self).as_subclass(Tensor)
        return Normals(torch.cat([-flipped[:1], flipped[1:]]))


class Edges(Map):
    """Lines one pixel wide, ``(H, W)``: 1 on them, 0 beside them, 255 where there is no label."""

    def resized(self, height: int, width: int) -> Tensor:
        """Lines stay unbroken where the image shrinks: a pixel is an edge if any that it stands for is."""
        if height > self.shape[-2] or width > self.shape[-1]:
            return super().resized(height, width)
        values = self.as_subclass(Tensor)
        some = adaptive_max_pool2d(torch.stack([values == 1, values != IGNORED]).float(), (height, width))
        return Edges(torch.where(some[0] > 0, 1, torch.where(some[1] > 0, 0, IGNORED)).to(values.dtype))


MAPS: dict[str, type[Map]] = {"mask": Map, "saliency": Map, "edges": Edges, "depth": Depth, "normals": Normals}
"""The targets that are maps, by their names in ``Sample.target``."""

NAMES = {"depth": ("depth",), "normals": ("x", "y", "z"), "saliency": ("salient",), "edges": ("edge",)}
"""What the planes of those maps stand for that hold no classes."""
