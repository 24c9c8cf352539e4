"""A head of queries after EoMT (arXiv 2503.19108): each finds one segment, and says of which class it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from mtpeft.api import Count, Features, FeaturesInfo, Whole
from mtpeft_tasks.maps import IGNORED
from mtpeft_tasks.names import Width
from mtpeft_tasks.segmentation.pixels import SegmentationHead
from mtpeft_tasks.segmentation.tokens import Mixed

_NOTHING = 0.1
CLASS, MASK, DICE = 2.0, 5.0, 5.0
"""The weights of the losses, and of their parts in matching, in Mask2Former (arXiv 2112.01527) and EoMT."""


@dataclass
class Outputs:
    """What the queries say.

    Attributes:
        classes: logits ``(B, N, K + 1)``, the last of no object.
        masks: logits ``(B, N, h, w)``.
    """

    classes: Tensor
    masks: Tensor


class Query(SegmentationHead):
    """Cells and learned queries attend to each other; a query gives a class, or none, and a mask.

    In training each class that an image shows is one segment, and segments are matched to queries one to one at the
    least cost; what queries are left over shall say that there is no object. A pixel's score of a class is the sum
    over the queries of their probabilities that they are of this class and that the pixel is theirs.

    EoMT runs its queries through the last blocks of the backbone itself. A head sees no more than the frozen
    backbone's features, so it has blocks of its own here. Its masked attention in training, which is annealed away
    until none is left in use, is left out, and so are the losses after each block that come with it. A mask's logits
    are compared on their own grid with the share that a segment has of a cell, where the paper's are at points drawn
    at random. Where an image shows more classes than there are queries, those that fit worst go unmatched.

    Args:
        info: widths and strides of the maps.
        classes: names of the outputs.
        width: of the tokens, a multiple of 32 (the width of an attention head).
        layers: transformer blocks.
        queries: how many segments an image can have.
        upscale: embeddings for each cell and direction; 0 chooses the power of two that brings the stride of the
            masks to at most 2 pixels for inputs up to 128, 4 above.
    """

    def __init__(
        self,
        info: FeaturesInfo,
        classes: Sequence[str],
        *,
        width: Width = 128,
        layers: Count = 2,
        queries: Count = 32,
        upscale: Whole = 0,
    ) -> None:
        super().__init__(info, classes)
        self.mixed = Mixed(info, width, layers, upscale)
        self.queries = nn.Parameter(torch.randn(queries, width))
        self.of_query = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width // 2))
        self.nothing = nn.Linear(width, 1)
        self.add_rows(width)

    def forward(self, features: Features) -> Outputs:
        parts, queries = self.mixed(features, self.queries)
        classes = torch.cat([F.linear(queries, self.weight, self.bias), self.nothing(queries)], dim=-1)
        return Outputs(classes, torch.einsum("bnc,bchw->bnhw", self.of_query(queries), parts))

    def extent(self, outputs: Outputs) -> tuple[int, int]:
        height, width = self.size
        return height, width

    def loss(self, outputs: Outputs, masks: Tensor, smoothing: float) -> dict[str, Tensor]:
        """``classification``, ``mask`` (binary cross-entropy) and ``dice``, means over the images with a label.

        Each image's loss is what it would be alone: of its classes, a weighted mean over the queries, and of masks, a
        mean over its segments.
        """
        classes, logits = outputs.classes.float(), outputs.masks.float()
        start = 0.0 * (classes.sum() + logits.sum())  # a batch without any label still has a gradient
        rows = [row for row, mask in enumerate(masks) if (mask != IGNORED).any()]
        with torch.autocast(masks.device.type, enabled=False):  # which would sum over cells in bf16
            each = [image_losses(classes[row], logits[row], masks[row], smoothing) for row in rows]
        sums = [sum(values, start) / len(each) for values in zip(*each, strict=True)] if each else [start] * 3
        return dict(zip(("classification", "mask", "dice"), sums, strict=True))

    def scores(self, outputs: Outputs) -> Tensor:
        classes = outputs.classes.float().softmax(-1)[..., :-1]
        return torch.einsum("bnk,bnhw->bkhw", classes, self.full_size(outputs.masks.float()).sigmoid())


def image_losses(classes: Tensor, masks: Tensor, mask: Tensor, smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
    """The weighted losses of one image: of classes, of masks, dice.

    Args:
        classes: logits ``(N, K + 1)``.
        masks: logits ``(N, h, w)``.
        mask: ``(H, W) int64``, some of it labelled.
        smoothing: of the labels.
    """
    present, shares, labelled = segments(mask, (masks.shape[-2], masks.shape[-1]))
    entropy, dice = compared(masks.flatten(1), shares, labelled)
    cost = MASK * entropy + DICE * dice - CLASS * classes.softmax(-1)[:, present]
    rows, columns = (torch.as_tensor(found, device=mask.device) for found in matched(cost))
    wanted = mask.new_full((len(classes),), classes.shape[1] - 1)
    wanted[rows] = present[columns]
    weight = classes.new_ones(classes.shape[1])
    weight[-1] = _NOTHING
    named = F.cross_entropy(classes, wanted, weight, label_smoothing=smoothing)
    return CLASS * named, MASK * entropy[rows, columns].mean(), DICE * dice[rows, columns].mean()


def segments(mask: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """The classes ``(P,)`` that a mask shows; the shares ``(P, h w)`` of each grid cell that are of each, and labelled.

    The last is ``(h w,)``; a cell's shares sum to it.
    """
    shown = mask != IGNORED
    present = mask[shown].unique()
    planes = torch.cat([mask == present[:, None, None], shown[None]]).float()
    shares = F.adaptive_avg_pool2d(planes, grid).flatten(1)
    return present, shares[:-1], shares[-1]


def compared(masks: Tensor, shares: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and dice loss ``(N, P)`` of each mask against each segment, over what is labelled.

    Of a cell ``w`` is labelled and ``s`` the segment's; a logit ``m`` has the entropy ``w softplus(m) - s m`` there.

    Args:
        masks: logits ``(N, cells)``.
        shares: ``(P, cells)``.
        labelled: ``(cells,)``.
    """
    entropy = ((F.softplus(masks) @ labelled)[:, None] - masks @ shares.T) / labelled.sum()
    chance = masks.sigmoid()
    both, either = chance @ shares.T, (chance @ labelled)[:, None] + shares.sum(1)
    return entropy, 1 - (2 * both + 1) / (either + 1)


def matched(cost: Tensor) -> tuple[Sequence[int], Sequence[int]]:
    """Rows and columns of the cheapest one-to-one assignment."""
    found = linear_sum_assignment(torch.nan_to_num(cost.detach()).cpu().numpy())  # who sees the loss refuses a NaN
    return found[0], found[1]
