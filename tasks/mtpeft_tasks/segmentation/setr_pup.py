"""SETR with progressive upsampling (arXiv 2012.15840): one map is doubled step by step."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mtpeft.api import Count, Features, FeaturesInfo, Whole
from mtpeft_tasks.segmentation.pixels import OneMap, PixelHead, convolution, upscale_for

_FINEST = 8


class SETRPUP(PixelHead):
    """A convolution and a bilinear doubling, again and again, then one row for each class.

    From the map of a plain backbone, as in the paper; of a hierarchical one, whose last map is too coarse to begin
    with, from its maps of stride 8 and above, added. Normalisation is over the channels of each cell, where the paper's
    is over the batch.

    Args:
        info: widths and strides of the maps.
        classes: names of the outputs.
        width: channels of every step.
        steps: doublings; 0 brings the stride to at most 2 pixels for inputs up to 128, 4 above.
    """

    def __init__(self, info: FeaturesInfo, classes: Sequence[str], *, width: Count = 64, steps: Whole = 0) -> None:
        super().__init__(info, classes)
        self.start = OneMap(info, width, _FINEST)
        steps = steps or upscale_for(self.start.stride, info.image_size).bit_length() - 1
        self.stages = nn.Sequential(
            *(
                nn.Sequential(convolution(width, width), nn.Upsample(scale_factor=2, mode="bilinear"))
                for _ in range(steps)
            )
        )
        self.add_rows(width, std=width**-0.5)

    def forward(self, features: Features) -> Tensor:
        return self.of_map(self.stages(self.start(features)))
