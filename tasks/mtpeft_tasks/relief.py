"""The embedded scenes as a relief: what stands in for depth, normals, saliency and edges where there is no data.

The digits are hills with slopes of 45 degrees on a plane: the height of a pixel is its distance from the outline,
positive on the ink and negative beside it, where the slope ends 8 pixels further down. It is seen from straight above,
from 2 units of depth over the outline; a unit is 4 pixels.

- ``depth (64, 64)``: ``2 - height / 4``;
- ``normals (3, 64, 64)``: ``(-dh/dx, -dh/dy, 1)`` at unit length, x to the right and y down;
- ``saliency (64, 64)``: the ink;
- ``edges (64, 64)``: the ink that has a neighbour above, below, left or right without ink.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

OVER, UNIT, FOOT = 2, 4, -8


def target(kind: str, ink: np.ndarray) -> Tensor:
    """One of the maps of a scene, from where its ``ink (H, W) bool`` is."""
    if kind == "depth":
        return torch.from_numpy(OVER - height(ink) / UNIT)
    if kind == "normals":
        return torch.from_numpy(normals(height(ink)))
    return torch.from_numpy((ink if kind == "saliency" else outline(ink)).astype(np.uint8))


def height(ink: np.ndarray) -> np.ndarray:
    """Pixels ``(H, W) float32`` over the outline, which lies halfway between ink and what is beside it."""
    found = np.where(ink, _distance(ink) - 0.5, 0.5 - _distance(~ink))
    return found.clip(min=FOOT).astype(np.float32)


def normals(height: np.ndarray) -> np.ndarray:
    """Unit vectors ``(3, H, W) float32`` on a surface of this height, by central differences."""
    down, right = np.gradient(height)
    vectors = np.stack([-right, -down, np.ones_like(height)])
    return vectors / np.linalg.norm(vectors, axis=0)


def outline(region: np.ndarray) -> np.ndarray:
    """The pixels of a region ``(H, W) bool`` that have a direct neighbour outside it; beyond the border is none."""
    padded = np.pad(region, 1, constant_values=True)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return region & ~inner


def _distance(region: np.ndarray) -> np.ndarray:
    """From each pixel of a region to the nearest outside it, which is always one on the outline of the outside."""
    found = np.zeros(region.shape)
    inside, rim = (np.argwhere(mask).astype(np.float32) for mask in (region, outline(~region)))
    squares = (inside**2).sum(1)[:, None] + (rim**2).sum(1) - 2 * inside @ rim.T  # whole numbers, exact in float32
    found[region] = np.sqrt(squares.min(1, initial=region.size**2))
    return found
