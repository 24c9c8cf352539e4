"""FCOS (arXiv 2006.09214) as a head: torchvision's towers, matching and post-processing on a feature pyramid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import FCOS
from torchvision.models.detection.fcos import FCOSHead
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from mtpeft.api import Count, FeaturePyramid, FeaturesInfo, Fraction
from mtpeft_tasks.detection.anchors import CellAnchors
from mtpeft_tasks.detection.detector import NoBackbone, OneStage
from mtpeft_tasks.names import Width, grown


class FCOSDetector(OneStage):
    """Every cell says how far the sides of its box are: no anchor shapes, and the cheapest of the detectors.

    Args:
        info: what the backbone gives.
        classes: names of the objects.
        width: channels of the pyramid and the towers, a multiple of 32 (GroupNorm has 32 groups).
        strides: pixels per cell of each level; empty for the pyramid's own without the levels that no box can fall on.
        convs: 3x3 convolutions in each of the two towers; one leaves it to the backbone to adapt, which costs less.
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
        convs: Count = 1,
        score_threshold: Fraction = 0.05,
        detections: Count = 100,
    ) -> None:
        super().__init__(info, classes, width, CellAnchors(sorted(set(strides)) or useful_strides(info)))
        self.detector = FCOS(
            NoBackbone(width),
            len(self.classes),
            anchor_generator=self.anchors,
            head=ImageMeanHead(width, 1, len(self.classes), convs),
            score_thresh=score_threshold,
            detections_per_img=detections,
        )

    def compute(
        self, targets: list[dict[str, Tensor]], named: dict[str, Tensor], anchors: list[Tensor], counts: list[int]
    ) -> dict[str, Tensor]:
        return self.detector.compute_loss(targets, named, anchors, counts)

    def grow(self, count: int) -> None:
        head = self.detector.head.classification_head
        bias = grown(head.cls_logits.bias, count)
        bias[len(bias) - count :] = -math.log(99)  # a prior of 0.01, as at the start
        head.cls_logits.weight = nn.Parameter(grown(head.cls_logits.weight, count, 0.01))
        head.cls_logits.bias = nn.Parameter(bias)
        head.num_classes = head.cls_logits.out_channels = len(self.classes)


class ImageMeanHead(FCOSHead):
    """torchvision's towers; its losses, each normalized by the positive points of its own image, then averaged.

    torchvision divides by the positive points of the whole batch instead, so that an image's weight depends on others.
    """

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        matched = torch.stack(matched_idxs)  # (B, P): the box each point stands for, or -1
        image, point = torch.nonzero(matched >= 0, as_tuple=True)
        boxes, labels = _matched(targets, matched)
        per_image = 1.0 / (matched >= 0).sum(1).clamp(min=1) / len(targets)
        weight, squares = per_image[image], anchors[0][point]
        logits = head_outputs["cls_logits"]
        one_hot = torch.zeros_like(logits)
        one_hot[image, point, labels] = 1.0
        predicted = self.box_coder.decode(head_outputs["bbox_regression"][image, point], squares)
        centerness = _centerness(self.box_coder.encode(squares, boxes))
        guess = head_outputs["bbox_ctrness"][image, point, 0]
        return {
            "classification": (sigmoid_focal_loss(logits, one_hot).sum((1, 2)) * per_image).sum(),
            "bbox_regression": (generalized_box_iou_loss(predicted, boxes) * weight).sum(),
            "bbox_ctrness": functional.binary_cross_entropy_with_logits(guess, centerness, weight, reduction="sum"),
        }


def useful_strides(info: FeaturesInfo) -> tuple[int, ...]:
    """The pyramid's default strides, less the coarse ones that would never be given a box.

    FCOS gives a level above the first only points more than 4 strides from a side of their box, and takes no point
    further than 1.5 strides from its centre: no box of an image under 5 strides wide has one.
    """
    finest, *others = FeaturePyramid.default_strides(info)
    return (finest, *(stride for stride in others if 5 * stride < max(info.image_size)))


def _matched(targets: list[dict[str, Tensor]], matched: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes ``(M, 4)`` and labels ``(M,)`` of the batch's positive points."""
    pairs = [(target, row[row >= 0]) for target, row in zip(targets, matched, strict=True)]
    boxes, labels = ([target[name][index] for target, index in pairs] for name in ("boxes", "labels"))
    return torch.cat(boxes), torch.cat(labels)


def _centerness(distances: Tensor) -> Tensor:
    """``(M,)`` from distances ``(M, 4)`` to the left, top, right and bottom side; 1 at the centre, 0 on a side."""
    sides = torch.stack([distances[:, [0, 2]], distances[:, [1, 3]]])
    return (sides.amin(-1) / sides.amax(-1)).prod(0).sqrt()
