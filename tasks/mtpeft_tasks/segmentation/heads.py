"""The linear segmentation head, where every cell of the maps predicts its own patch of pixels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from mtpeft.api import Count, Features, FeaturesInfo, Fraction, Whole
from mtpeft_tasks.segmentation.pixels import PixelHead, deepest, upscale_for


class Linear(PixelHead):
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
        self,
        info: FeaturesInfo,
        classes: Sequence[str],
        *,
        upscale: Whole = 0,
        width: Count = 128,
        dropout: Fraction = 0.0,
    ) -> None:
        super().__init__(info, classes)
        self.maps = deepest(info.strides)
        channels = [info.channels[index] for index in self.maps]
        self.upscale = upscale or upscale_for(info.strides[self.maps[0]], info.image_size)
        self.norms = nn.ModuleList(nn.LayerNorm(count) for count in channels)
        single = len(channels) == 1
        self.projections = nn.ModuleList(nn.Identity() if single else nn.Linear(count, width) for count in channels)
        self.dropout = nn.Dropout(dropout)
        self.add_rows(self.upscale**2, channels[0] if single else width)

    def forward(self, features: Features) -> Tensor:
        cells = self.dropout(self._cells(features))  # (B, h, w, C)
        logits = F.linear(cells, self.weight.flatten(0, 1), self.bias.flatten())  # (B, h, w, K s s)
        return self.full_size(F.pixel_shuffle(logits.permute(0, 3, 1, 2), self.upscale))  # from (B, K, h s, w s)

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
