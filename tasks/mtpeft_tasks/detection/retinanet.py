"""RetinaNet (arXiv 1708.02002) as a head: torchvision's towers, matching, losses and post-processing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.retinanet import RetinaNetClassificationHead, RetinaNetHead

from mtpeft.api import Count, FeaturesInfo, Fraction, Whole
from mtpeft_tasks.detection.anchors import anchors_for
from mtpeft_tasks.detection.detector import NoBackbone, OneStage
from mtpeft_tasks.names import Width, grown


class RetinaNetDetector(OneStage):
    """Every anchor says its class and how its box differs; sizes of anchors follow the image (see `ladder`).

    torchvision's losses are means over images already: each divides by the positive anchors of its own image.

    Args:
        info: what the backbone gives.
        classes: names of the objects.
        width: channels of the pyramid and the towers, a multiple of 32 (GroupNorm has 32 groups).
        strides: pixels per cell of each level; empty for the pyramid's own that leave an image more than one cell.
        convs: 3x3 convolutions in each of the two towers, at most torchvision's 4; one learns sooner and costs less.
        scales: sizes of anchors on each level; 0 takes as many as the image needs.
        score_threshold: detections that score less are dropped.
        detections: most detections kept for an image.

    Raises:
        UsageError: for a width that GroupNorm cannot divide, or strides that cannot be made.
    """

    def __init__(
        self,
        info: FeaturesInfo,
        classes: Sequence[str],
        *,
        width: Width = 64,
        strides: tuple[Count, ...] = (),
        convs: Annotated[int, Field(ge=1, le=4, description="a whole number from 1 to 4")] = 1,
        scales: Whole = 0,
        score_threshold: Fraction = 0.05,
        detections: Count = 100,
    ) -> None:
        super().__init__(info, classes, width, anchors_for(info, strides, scales))
        each = self.anchors.num_anchors_per_location()[0]
        self.detector = RetinaNet(
            NoBackbone(width),
            len(self.classes),
            anchor_generator=self.anchors,
            head=_Towers(width, each, len(self.classes), convs),
            score_thresh=score_threshold,
            detections_per_img=detections,
        )

    def compute(
        self, targets: list[dict[str, Tensor]], named: dict[str, Tensor], anchors: list[Tensor], counts: list[int]
    ) -> dict[str, Tensor]:
        return self.detector.compute_loss(targets, named, anchors)

    def grow(self, count: int) -> None:
        head = self.detector.head.classification_head
        rows = count * head.num_anchors
        bias = grown(head.cls_logits.bias, rows)
        bias[len(bias) - rows :] = -math.log(99)  # a prior of 0.01, as at the start
        head.cls_logits.weight = nn.Parameter(grown(head.cls_logits.weight, rows, 0.01))
        head.cls_logits.bias = nn.Parameter(bias)
        head.num_classes, head.cls_logits.out_channels = len(self.classes), len(bias)


class _Towers(RetinaNetHead):
    """torchvision's with group normalisation and as many convolutions as asked for."""

    def __init__(self, width: int, anchors: int, classes: int, convs: int) -> None:
        norm = partial(nn.GroupNorm, 32)
        super().__init__(width, anchors, classes, norm)
        self.classification_head = _ClassRows(width, anchors, classes, norm_layer=norm)
        for tower in (self.classification_head, self.regression_head):
            tower.conv = tower.conv[:convs]


class _ClassRows(RetinaNetClassificationHead):
    """torchvision's, its logits laid out class by class, so that a new class's rows stand behind the others."""

    def forward(self, x: list[Tensor]) -> Tensor:
        logits = [self.cls_logits(self.conv(level)).unflatten(1, (self.num_classes, -1)) for level in x]
        return torch.cat([level.permute(0, 3, 4, 2, 1).flatten(1, 3) for level in logits], dim=1)  # (B, P, K)
