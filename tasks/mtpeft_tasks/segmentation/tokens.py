"""What heads of tokens share: the cells of a map and a head's own tokens attend to each other."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from mtpeft.api import Features, FeaturesInfo
from mtpeft_tasks.segmentation.pixels import OneMap, upscale_for

_FINEST = 16  # finer grids make attention expensive
_HEAD = 32


class Mixed(nn.Module):
    """Transformer blocks over the cells of one map and further tokens; a cell then gives ``upscale x upscale`` vectors.

    Args:
        info: widths and strides of the maps.
        width: ``C``, of the tokens, a multiple of 32 (the width of an attention head).
        layers: blocks.
        upscale: vectors for each cell and direction; 0 chooses the power of two that brings the stride of the vectors
            to at most 2 pixels for inputs up to 128, 4 above.
    """

    def __init__(self, info: FeaturesInfo, width: int, layers: int, upscale: int) -> None:
        super().__init__()
        self.start = OneMap(info, width, _FINEST)
        self.upscale = upscale or upscale_for(self.start.stride, info.image_size)
        self.blocks = nn.Sequential(*(Block(width, width // _HEAD, qkv_bias=True) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.of_cell = nn.Linear(width, self.upscale**2 * width // 2)

    def forward(self, features: Features, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors ``(B, C / 2, h s, w s)`` of the cells, and the tokens ``(N, C)`` as ``(B, N, C)``."""
        map_ = self.start(features)
        cells = map_.flatten(2).transpose(1, 2)  # (B, h w, C)
        joined = torch.cat([cells, tokens.expand(len(cells), -1, -1).to(cells.dtype)], dim=1)
        cells, tokens = self.norm(self.blocks(joined)).split([cells.shape[1], len(tokens)], dim=1)
        grid = self.of_cell(cells).transpose(1, 2).unflatten(-1, map_.shape[-2:])  # (B, C s s / 2, h, w)
        return F.pixel_shuffle(grid, self.upscale), tokens
