"""Convolving tokens: the grid as an image, and every token before it as an image of one pixel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mtpeft.peft.route import TokenLayout
from mtpeft.peft.sites import Site

Window = tuple[int, int] | None


def over_grid(convolve: Callable[[Tensor], Tensor], x: Tensor, layout: TokenLayout, window: Window = None) -> Tensor:
    """Runs ``convolve``, from ``(B, C, H, W)`` to the same, on ``(B, H, W, C)`` or a sequence ``(B, P + H W, C)``.

    Args:
        layout: how the tokens lie in this pass, `Part.layout`.
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
    """Gives height and width of the windows that an attention works on; None where it sees the whole grid."""
    size = None if site.model.tokens else getattr(site.module, "window_size", None)
    return (size, size) if isinstance(size, int) else size
