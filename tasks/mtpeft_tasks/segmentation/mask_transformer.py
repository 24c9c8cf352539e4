"""The mask transformer of Segmenter (arXiv 2105.05633): classes are tokens that look at the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtpeft.api import Count, Features, FeaturesInfo, Whole
from mtpeft_tasks.names import Width
from mtpeft_tasks.segmentation.pixels import PixelHead
from mtpeft_tasks.segmentation.tokens import Mixed


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
        width: Width = 128,
        layers: Count = 2,
        upscale: Whole = 0,
    ) -> None:
        super().__init__(info, classes)
        self.mixed = Mixed(info, width, layers, upscale)
        self.of_class = nn.Linear(width, width // 2)
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.add_rows(width)  # the class tokens

    def forward(self, features: Features) -> Tensor:
        parts, classes = self.mixed(features, self.weight)
        parts, classes = F.normalize(parts, dim=1), F.normalize(self.of_class(classes), dim=-1)
        logits = self.scale * torch.einsum("bchw,bkc->bkhw", parts, classes) + self.bias[:, None, None]
        return self.full_size(logits)
