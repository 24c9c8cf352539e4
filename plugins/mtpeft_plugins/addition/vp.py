"""Visual prompting (arXiv 2203.17274): a learned border of pixels, added to the image.

``image' = image + border``, four strips ``w`` pixels wide, drawn from N(0, 1) as in the paper. It is added where
the backbone first convolves the image, after the image was normalised. Images of another size than the backbone's
get the strips stretched along the border.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtpeft.api import Count, Declarations, InputPart, Method, NotApplicable, Site


class Border(InputPart):
    """Strips ``top, bottom (3, w, W)`` and ``left, right (3, H - 2 w, w)``."""

    def __init__(self, height: int, width: int, border: int) -> None:
        super().__init__()
        self.border = border
        self.top, self.bottom = (nn.Parameter(torch.randn(3, border, width)) for _ in range(2))
        self.left, self.right = (nn.Parameter(torch.randn(3, height - 2 * border, border)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        check_room(self.border, x.shape[1], x.shape[2])
        height, width = x.shape[1] - 2 * self.border, x.shape[2]
        top, bottom = (stretched(strip, self.border, width) for strip in (self.top, self.bottom))
        left, right = (stretched(strip, height, self.border) for strip in (self.left, self.right))
        middle = torch.cat([left, left.new_zeros(3, height, width - 2 * self.border), right], 2)
        return x + torch.cat([top, middle, bottom], 1).movedim(0, -1)


def stretched(strip: Tensor, height: int, width: int) -> Tensor:
    """``strip (3, h, w)`` resized where it is not ``height`` x ``width``."""
    if strip.shape[1:] == (height, width):
        return strip
    return F.interpolate(strip[None], (height, width), mode="bilinear", align_corners=False)[0]


def check_room(border: int, height: int, width: int) -> None:
    """Refuse a border that leaves nothing of an image.

    Raises:
        NotApplicable: where that is so.
    """
    if 2 * border >= min(height, width):
        raise NotApplicable(
            f"a border {border} pixels wide leaves nothing of an image of {height} x {width}", hint="set width smaller"
        )


@dataclass
class Vp(Method):
    """A learned frame around the image.

    ``width`` is in pixels; by default 30 of 224, in proportion to the backbone's smaller side.
    """

    declares = Declarations(
        category="addition",
        identity_at_init=False,
        families="all that begin with a convolution over the image",
        learning_rate=1e-2,
        paper="Exploring Visual Prompts for Adapting Large-Scale Models, arXiv 2203.17274",
    )

    at: str = "conv"
    width: Count | None = None

    def part(self, site: Site) -> InputPart | None:
        if site.block is not None or site.in_features != 3:
            return None
        height, width = site.model.image_size
        border = max(round(min(height, width) * 30 / 224), 1) if self.width is None else self.width
        check_room(border, height, width)
        return Border(height, width, border)
