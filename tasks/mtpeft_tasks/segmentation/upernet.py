"""UPerNet (arXiv 1807.10221), small: pyramid pooling on the coarsest map, a feature pyramid, all levels together."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork

from mtpeft.api import Count, FeaturePyramid, Features, FeaturesInfo
from mtpeft_tasks.segmentation.pixels import PixelHead, convolution, deepest, resized

_BINS = (1, 2, 3, 6)


class UPerNet(PixelHead):
    """The maps of a hierarchical backbone, or the simple feature pyramid of a plain one, read together.

    The coarsest map also sees its means over the cells of coarse grids; its content then flows down to the finer ones,
    and all of them, brought to the finest, are joined by one convolution. Normalisation is over the channels of each
    cell, where the paper's is over the batch.

    Args:
        info: widths and strides of the maps.
        classes: names of the outputs.
        width: channels of every level.
    """

    def __init__(self, info: FeaturesInfo, classes: Sequence[str], *, width: Count = 64) -> None:
        super().__init__(info, classes)
        self.maps = deepest(info.strides)
        channels, strides = [info.channels[index] for index in self.maps], [info.strides[i] for i in self.maps]
        self.pyramid = None
        if len(strides) == 1:
            self.pyramid = FeaturePyramid(info, width)
            channels, strides = [width] * len(self.pyramid.strides), list(self.pyramid.strides)
        self.pool = PyramidPool(channels[-1], width, -(-min(info.image_size) // strides[-1]))
        self.network = FeaturePyramidNetwork([*channels[:-1], width], width, norm_layer=LayerNorm2d)
        self.join = convolution(len(channels) * width, width)
        self.add_rows(width, std=width**-0.5)

    def forward(self, features: Features) -> Tensor:
        *finer, coarsest = self.pyramid(features) if self.pyramid else [features.maps[i] for i in self.maps]
        named = OrderedDict((str(index), level) for index, level in enumerate([*finer, self.pool(coarsest)]))
        levels = list(self.network(named).values())
        return self.of_map(self.join(torch.cat([resized(level, levels[0]) for level in levels], dim=1)))


class PyramidPool(nn.Module):
    """A map beside its means over grids of 1, 2, 3 and 6 cells in each direction (arXiv 1612.01105), joined.

    Args:
        channels: of the map.
        width: channels of the output.
        cells: of the map's shorter side; finer grids than the map are left out.
    """

    def __init__(self, channels: int, width: int, cells: int) -> None:
        super().__init__()
        self.bins = [count for count in _BINS if count <= cells]
        narrow = max(width // len(_BINS), 1)
        self.branches = nn.ModuleList(convolution(channels, narrow, 1) for _ in self.bins)
        self.join = convolution(channels + narrow * len(self.bins), width)

    def forward(self, map_: Tensor) -> Tensor:
        pairs = zip(self.branches, self.bins, strict=True)
        means = [resized(branch(F.adaptive_avg_pool2d(map_, count)), map_) for branch, count in pairs]
        return self.join(torch.cat([map_, *means], dim=1))
