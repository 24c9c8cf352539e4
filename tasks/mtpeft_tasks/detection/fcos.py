"""FCOS (arXiv 2006.09214) as a head: torchvision's towers, matching and post-processing on a feature pyramid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from mtpeft.api import FeaturePyramid, Features, FeaturesInfo, Head, UsageError
from mtpeft_tasks.names import grown, known_positions, unseen

_LOSSES = {"classification": "classification", "bbox_regression": "regression", "bbox_ctrness": "centerness"}


@dataclass
class Points:
    """What the head says of each point of the pyramid, levels one after another, finest first.

    Attributes:
        logits: ``(B, P, K)``, one per class.
        distances: ``(B, P, 4)``, to the left, top, right and bottom side of the box, in strides of the point's level.
        centerness: ``(B, P, 1)``, a logit.
        anchors: ``(P, 4)``, each point as a square box of its stride, in pixels of the model's input.
        counts: points of each level.
        image_size: height and width of the model's input, in pixels.
    """

    logits: Tensor
    distances: Tensor
    centerness: Tensor
    anchors: Tensor
    counts: list[int]
    image_size: tuple[int, int]

    def named(self) -> dict[str, Tensor]:
        """Under torchvision's names."""
        return {"cls_logits": self.logits, "bbox_regression": self.distances, "bbox_ctrness": self.centerness}


class FCOSDetector(Head):
    """The same in training and evaluation, and for each sample whatever else the batch holds.

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
        width: int = 64,
        strides: Sequence[int] = (),
        convs: int = 1,
        score_threshold: float = 0.05,
        detections: int = 100,
    ) -> None:
        super().__init__()
        if width < 32 or width % 32:
            raise UsageError(f"The head's width is {width}, which is no multiple of 32.", hint="try 64 or 128")
        self.classes = tuple(classes)
        self.image_size, self.finest = info.image_size, min(info.strides)
        self.pyramid = FeaturePyramid(info, width, tuple(strides) or useful_strides(info))
        self.detector = FCOS(
            _NoBackbone(width),
            len(self.classes),
            anchor_generator=CellAnchors(self.pyramid.strides),
            head=ImageMeanHead(width, 1, len(self.classes), convs),
            score_thresh=score_threshold,
            detections_per_img=detections,
        )

    def forward(self, features: Features) -> Points:
        maps = self.pyramid(features)
        outputs = {name: value.float() for name, value in self.detector.head(maps).items()}
        return Points(
            logits=outputs["cls_logits"],
            distances=outputs["bbox_regression"],
            centerness=outputs["bbox_ctrness"],
            anchors=self.detector.anchor_generator.of(maps),
            counts=[level.shape[-2] * level.shape[-1] for level in maps],
            image_size=self._image_size(features.maps[0]),
        )

    def extend(self, classes: Sequence[str]) -> None:
        new, head = unseen(classes, self.classes), self.detector.head.classification_head
        self.classes += new
        bias = grown(head.cls_logits.bias, len(new))
        bias[len(bias) - len(new) :] = -math.log(99)  # a prior of 0.01, as at the start
        head.cls_logits.weight = nn.Parameter(grown(head.cls_logits.weight, len(new), 0.01))
        head.cls_logits.bias = nn.Parameter(bias)
        head.num_classes = head.cls_logits.out_channels = len(self.classes)

    def loss(self, points: Points, targets: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Mean over the images that have ``boxes`` (maybe none in them) of each one's loss per positive point."""
        rows = [row for row, target in enumerate(targets) if "boxes" in target]
        if not rows:
            start = points.logits.new_zeros(())
            return {"classification": sum((value.sum() for value in points.named().values()), start) * 0.0}
        known = [self._known(targets[row]) for row in rows]
        outputs = {name: value[rows] for name, value in points.named().items()}
        losses = self.detector.compute_loss(known, outputs, [points.anchors] * len(rows), points.counts)
        return {_LOSSES[name]: value for name, value in losses.items()}

    def detect(self, points: Points) -> list[dict[str, Tensor]]:
        """``{"boxes" (N, 4), "scores" (N,), "labels" (N,)}`` for each image, in pixels of the model's input."""
        levels = {name: list(value.split(points.counts, dim=1)) for name, value in points.named().items()}
        anchors, batch = list(points.anchors.split(points.counts)), len(points.logits)
        return self.detector.postprocess_detections(levels, [anchors] * batch, [points.image_size] * batch)

    def _known(self, target: dict[str, Any]) -> dict[str, Tensor]:
        """Boxes and labels, the latter as indices into the head's classes."""
        labels = known_positions([target["classes"][label] for label in target["labels"].tolist()], self.classes)
        return {"boxes": target["boxes"], "labels": labels.to(target["boxes"].device)}

    def _image_size(self, finest: Tensor) -> tuple[int, int]:
        """The described image size, scaled where the maps come from a smaller or larger image."""
        height, width = self.image_size
        rows, columns = (-(-side // self.finest) for side in self.image_size)
        return round(height * finest.shape[-2] / rows), round(width * finest.shape[-1] / columns)


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


class CellAnchors(AnchorGenerator):
    """One square of a stride's size at the centre of each cell.

    torchvision's stand at the cells' upper left corners, and are wrong where a map's size does not divide the image's.
    """

    def __init__(self, strides: Sequence[int]) -> None:
        super().__init__(tuple((stride,) for stride in strides), ((1.0,),) * len(strides))
        self.strides = tuple(strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        return [self.of(feature_maps)] * len(image_list.image_sizes)

    def of(self, maps: Sequence[Tensor]) -> Tensor:
        """The squares ``(P, 4)`` of all levels, in pixels."""
        return torch.cat([_squares(level, stride) for level, stride in zip(maps, self.strides, strict=True)])


class _NoBackbone(nn.Module):
    """Stands where torchvision's FCOS wants a backbone; the host has one already."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels


def useful_strides(info: FeaturesInfo) -> tuple[int, ...]:
    """The pyramid's default strides, less the coarse ones that would never be given a box.

    FCOS gives a level above the first only points more than 4 strides from a side of their box, and takes no point
    further than 1.5 strides from its centre: no box of an image under 5 strides wide has one.
    """
    finest, *others = FeaturePyramid.default_strides(info)
    return (finest, *(stride for stride in others if 5 * stride < max(info.image_size)))


def _squares(level: Tensor, stride: int) -> Tensor:
    rows, columns = (torch.arange(side, device=level.device) * float(stride) for side in level.shape[-2:])
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y, x + stride, y + stride], dim=-1).reshape(-1, 4)


def _matched(targets: list[dict[str, Tensor]], matched: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes ``(M, 4)`` and labels ``(M,)`` of the batch's positive points."""
    pairs = [(target, row[row >= 0]) for target, row in zip(targets, matched, strict=True)]
    boxes, labels = ([target[name][index] for target, index in pairs] for name in ("boxes", "labels"))
    return torch.cat(boxes), torch.cat(labels)


def _centerness(distances: Tensor) -> Tensor:
    """``(M,)`` from distances ``(M, 4)`` to the left, top, right and bottom side; 1 at the centre, 0 on a side."""
    sides = torch.stack([distances[:, [0, 2]], distances[:, [1, 3]]])
    return (sides.amin(-1) / sides.amax(-1)).prod(0).sqrt()
