"""What a backbone gives to heads: one description (`FeaturesInfo`) and one batch of it (`Features`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class FeaturesInfo:
    """The widths and strides that heads are built for.

    Attributes:
        pooled: width of the pooled vector.
        channels: width of each map, finest first.
        strides: pixels per cell of each map, in the same order.
        prefix: number of prefix (class and register) tokens.
        image_size: height and width of the images, in pixels.
    """

    pooled: int
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    prefix: int
    image_size: tuple[int, int]


@dataclass(frozen=True)
class ImageConfig:
    """How the backbone wants its images: size ``(H, W)`` in pixels, mean and std per channel, interpolation."""

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"


@dataclass
class Features:
    """One batch of features. Every tensor's first dimension is the sample, so a batch can be cut and joined.

    Attributes:
        pooled: ``(B, C)``.
        maps: one ``(B, C_i, H_i, W_i)`` for each stride, finest first.
        prefix: ``(B, P, C)`` or None where the backbone has no prefix tokens.
        taps: every block's output, channels last, only where a side part asks for it.
    """

    pooled: Tensor
    maps: tuple[Tensor, ...]
    prefix: Tensor | None = None
    taps: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.pooled)

    def __getitem__(self, rows: slice | Tensor) -> Features:
        """The features of some samples: a slice, or an index tensor ``(B',)``."""
        return self.each(lambda tensor: tensor[rows])

    def each(self, change: Callable[[Tensor], Tensor]) -> Features:
        """The same change made to every tensor."""

        def apply(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(change(v) for v in value)
            return None if value is None else change(value)

        return replace(self, **{f.name: apply(getattr(self, f.name)) for f in fields(self)})

    @staticmethod
    def cat(parts: list[Features]) -> Features:
        """Join batches along the sample dimension."""
        first = parts[0]
        if len(parts) == 1:
            return first

        def join(name: str) -> Any:
            values = [getattr(p, name) for p in parts]
            if isinstance(values[0], tuple):
                return tuple(torch.cat(v) for v in zip(*values, strict=True))
            return None if values[0] is None else torch.cat(values)

        return Features(**{f.name: join(f.name) for f in fields(first)})
