"""Convolutions over tokens: the grid as an image, and every token before it as an image of one pixel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mtpeft.api import NotApplicable, Site, TokenLayout

Window = tuple[int, int] | None


def over_grid(convolve: Callable[[Tensor], Tensor], x: Tensor, layout: TokenLayout, window: Window = None) -> Tensor:
    """``convolve``, which takes and gives ``(B, C, H, W)``, on ``(B, H, W, C)`` or a sequence ``(B, P + H W, C)``.

    Args:
        window: height and width of the grid where ``x`` holds windows of an image, one in each row.
    """
    if x.ndim == 4:
        return convolve(x.movedim(-1, 1)).movedim(1, -1)
    batch, count, channels = x.shape
    before, height, width = (0, *window) if window else layout.grid(count)
    image = x[:, before:].transpose(1, 2).reshape(batch, channels, height, width)
    grid = convolve(image).flatten(2).transpose(1, 2)
    if not before:
        return grid
    alone = convolve(x[:, :before].reshape(-1, channels, 1, 1)).view(batch, before, -1)
    return torch.cat([alone, grid], 1)


def window_of(site: Site) -> Window:
    """Height and width of the windows that an attention works on; None where it sees the whole grid."""
    size = None if site.model.tokens else getattr(site.module, "window_size", None)
    return (size, size) if isinstance(size, int) else size


def refuse_reordered(site: Site) -> None:
    """Refuse backbones that reorder their tokens.

    Raises:
        NotApplicable: on Hiera, whose tokens lie in the order of its mask units.
    """
    if "unroll" in site.model.modules:
        raise NotApplicable(
            f"a convolution needs tokens row by row, and {site.model.family} keeps them in mask units",
            hint="take a method without convolutions, such as adapter-plus",
        )
