"""The mask transformer of Segmenter (arXiv 2105.05633): classes are tokens that look at the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from mtpeft.api import Features, FeaturesInfo
from mtpeft_tasks.names import Natural, Positive
from mtpeft_tasks.segmentation.pixels import OneMap, PixelHead, upscale_for

_FINEST = 16  # finer grids make attention expensive
_HEAD = 32


class MaskTransformer(PixelHead):
    """Cells and one token for each class attend to each other; a class's logit is its cosine with a cell's parts.

    The paper's layer norm over the classes is a learned scale and one bias for each class here: of one class it would
    leave nothing, and it would tie the outputs of known classes to those of new ones. Each cell gives ``upscale x
    upscale`` vectors, where the paper's gives one. Of a hierarchical backbone, the maps of stride 16 and above are
    added.

    Args:
        info: widths and strides of the maps.
        classes: names of the outputs.
        width: of the tokens, a multiple of 32 (the width of an attention head).
        layers: transformer blocks.
        upscale: vectors for each cell and direction; 0 chooses the power of two that brings the output stride to at
            most 2 pixels for inputs up to 128, 4 above.
    """

    def __init__(
        self,
        info: FeaturesInfo,
        classes: Sequence[str],
        *,
        width: Annotated[int, Field(gt=0, multiple_of=_HEAD)] = 128,
        layers: Positive = 2,
        upscale: Natural = 0,
    ) -> None:
        super().__init__(info, classes)
        self.start = OneMap(info, width, _FINEST)
        self.upscale = upscale or upscale_for(self.start.stride, info.image_size)
        self.blocks = nn.Sequential(*(Block(width, width // _HEAD, qkv_bias=True) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.of_cell = nn.Linear(width, self.upscale**2 * width // 2)
        self.of_class = nn.Linear(width, width // 2)
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.add_rows(width)  # the class tokens

    def forward(self, features: Features) -> Tensor:
        map_ = self.start(features)
        cells = map_.flatten(2).transpose(1, 2)  # (B, h w, C)
        tokens = torch.cat([cells, self.weight.expand(len(cells), -1, -1).to(cells.dtype)], dim=1)
        cells, classes = self.norm(self.blocks(tokens)).split([cells.shape[1], len(self.classes)], dim=1)
        parts = F.normalize(self.of_cell(cells).unflatten(-1, (self.upscale**2, -1)), dim=-1)  # (B, h w, s s, C)
        cosines = torch.einsum("bnsc,bkc->bksn", parts, F.normalize(self.of_class(classes), dim=-1))
        logits = self.scale * cosines + self.bias[:, None, None]
        grid = logits.flatten(1, 2).unflatten(-1, map_.shape[-2:])  # (B, K s s, h, w)
        return self.full_size(F.pixel_shuffle(grid, self.upscale))
