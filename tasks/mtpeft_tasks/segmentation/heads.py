"""The linear segmentation head: every cell of the maps predicts its own patch of pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtpeft.api import Features, FeaturesInfo, Head
from mtpeft_tasks.names import grown, unseen

_STD = 0.01


class Linear(Head):
    """``logits (B, K, H, W)`` at the size of the input.

    One linear layer on the maps (their channels normalised at each cell); a cell gives ``upscale x upscale``
    predictions for each class, laid out as a finer grid, then bilinear to the input's size. Several maps are projected
    to one width, brought to the finest grid and added before the layer.

    Args:
        info: widths and strides of the maps.
        classes: names of the outputs.
        upscale: predictions for each cell and direction; 0 chooses the power of two that brings the output stride to
            at most 2 pixels for inputs up to 128, 4 above.
        width: channels that several maps are projected to.
        dropout: on the normalised channels, in training.
    """

    def __init__(
        self, info: FeaturesInfo, classes: Sequence[str], *, upscale: int = 0, width: int = 128, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.size = tuple(info.image_size)
        self.maps = _used(info.strides)
        channels = [info.channels[index] for index in self.maps]
        self.upscale = upscale or _upscale(info.strides[self.maps[0]], 2 if max(self.size) <= 128 else 4)
        self.norms = nn.ModuleList(nn.LayerNorm(count) for count in channels)
        single = len(channels) == 1
        self.projections = nn.ModuleList(nn.Identity() if single else nn.Linear(count, width) for count in channels)
        self.dropout = nn.Dropout(dropout)
        rows, inputs = len(self.classes), channels[0] if single else width
        self.weight = nn.Parameter(torch.randn(rows, self.upscale**2, inputs) * _STD)
        self.bias = nn.Parameter(torch.zeros(rows, self.upscale**2))

    def forward(self, features: Features) -> Tensor:
        cells = self.dropout(self._cells(features))  # (B, h, w, C)
        logits = F.linear(cells, self.weight.flatten(0, 1), self.bias.flatten())  # (B, h, w, K s s)
        logits = F.pixel_shuffle(logits.permute(0, 3, 1, 2), self.upscale)  # (B, K, h s, w s)
        if logits.shape[-2:] == self.size:
            return logits
        return F.interpolate(logits, self.size, mode="bilinear", align_corners=False)

    def _cells(self, features: Features) -> Tensor:
        grid = features.maps[self.maps[0]].shape[-2:]
        found = []
        for index, norm, projection in zip(self.maps, self.norms, self.projections, strict=True):
            cells = projection(norm(features.maps[index].permute(0, 2, 3, 1)))
            if cells.shape[1:3] != grid:
                cells = F.interpolate(cells.permute(0, 3, 1, 2), grid, mode="bilinear", align_corners=False)
                cells = cells.permute(0, 2, 3, 1)
            found.append(cells)
        return sum(found[1:], found[0])

    def extend(self, classes: Sequence[str]) -> None:
        new = unseen(classes, self.classes)
        self.classes += new
        self.weight = nn.Parameter(grown(self.weight, len(new), _STD))
        self.bias = nn.Parameter(grown(self.bias, len(new)))


def _used(strides: tuple[int, ...]) -> tuple[int, ...]:
    """Which maps are read: of one-stride backbones the last (deepest), else one for each stride, finest first."""
    last = {stride: index for index, stride in enumerate(strides)}
    return tuple(last[stride] for stride in sorted(last))


def _upscale(stride: int, aim: int) -> int:
    upscale = 1
    while stride / upscale > aim:
        upscale *= 2
    return upscale


HEADS = {"linear": Linear}
