"""Faster R-CNN (arXiv 1506.01497) as a head: torchvision's proposals, matching, box heads and post-processing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers
from torchvision.ops import box_area, roi_align

from mtpeft.api import Count, Features, FeaturesInfo, Fraction, Whole
from mtpeft_tasks.detection.anchors import anchors_for, overlooked
from mtpeft_tasks.detection.detector import Detector, Outputs
from mtpeft_tasks.names import Width, grown

_ANCHORS_SEEN, _ANCHOR_SHARE, _REGION_SHARE = 64, 0.5, 0.25
_LEFT_OUT = -1  # a label of what neither a loss nor `shares` counts
_BETA = 1 / 9  # torchvision's, of its smooth L1 losses


class FasterRCNNDetector(Detector):
    """Anchors propose regions without a class; a second look at each proposal says class and box.

    torchvision draws the anchors and proposals that it computes losses on, so that a loss depends on how many draws
    came before. Here all count, each as often as it would be drawn (`shares`): the expectation of torchvision's loss,
    without its noise, and the same for an image in any batch. Costs follow the image: there are `proposals_for` it
    instead of torchvision's 1000 to 2000, and sizes of anchors are those of `ladder`.

    Args:
        info: what the backbone gives.
        classes: names of the objects.
        width: channels of the pyramid, a multiple of 32.
        strides: pixels per cell of each level; empty for the pyramid's own that leave an image more than one cell.
        scales: sizes of anchors on each level; 0 takes as many as the image needs.
        proposals: regions of each image that get a second look; 0 for `proposals_for` it.
        resolution: cells, in each direction, that a region is pooled to.
        hidden: width of the two layers of the second look.
        score_threshold: detections that score less are dropped.
        detections: most detections kept for an image.

    Raises:
        UsageError: for a width that is no multiple of 32, or strides that cannot be made.
    """

    def __init__(
        self,
        info: FeaturesInfo,
        classes: Sequence[str],
        *,
        width: Width = 64,
        strides: tuple[Count, ...] = (),
        scales: Whole = 0,
        proposals: Whole = 0,
        resolution: Count = 5,
        hidden: Count = 128,
        score_threshold: Fraction = 0.05,
        detections: Count = 100,
    ) -> None:
        super().__init__(info, classes, width, anchors_for(info, strides, scales))
        count = proposals or proposals_for(info.image_size)
        kept, each = ({"training": n, "testing": n} for n in (2 * count, count))
        self.regions = RegionProposalNetwork(
            self.anchors, RPNHead(width, self.anchors.num_anchors_per_location()[0]), 0.7, 0.3,
            _ANCHORS_SEEN, _ANCHOR_SHARE, kept, each, nms_thresh=0.7,
        )  # fmt: skip
        self.look = RoIHeads(
            RegionPool(self.anchors.strides, resolution), TwoMLPHead(width * resolution**2, hidden),
            FastRCNNPredictor(hidden, len(self.classes) + 1), 0.5, 0.5, count, _REGION_SHARE, None,
            score_threshold, 0.5, detections,
        )  # fmt: skip

    def forward(self, features: Features) -> Outputs:
        maps = self.pyramid(features)
        objectness, deltas = concat_box_prediction_layers(*self.regions.head(maps))
        batch = len(features)
        named = {"objectness": objectness.view(batch, -1), "bbox_regression": deltas.view(batch, -1, 4)}
        return self._outputs(features, maps, named, tuple(level.float() for level in maps))

    def losses(self, outputs: Outputs, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Of the anchors ``objectness`` and ``proposals``, of the second look ``classification`` and ``regression``."""
        return {**self._anchor_losses(outputs, targets), **self._region_losses(outputs, targets)}

    def detect(self, outputs: Outputs) -> list[dict[str, Tensor]]:
        proposals = self._proposals(outputs)
        sizes = [outputs.image_size] * len(proposals)
        found = self.look.postprocess_detections(*self._looked(outputs, proposals), proposals, sizes)
        each = zip(*found, strict=True)
        return [{"boxes": boxes, "scores": scores, "labels": labels - 1} for boxes, scores, labels in each]

    def grow(self, count: int) -> None:
        predictor = self.look.box_predictor
        for layer, rows, std in ((predictor.cls_score, count, 0.01), (predictor.bbox_pred, 4 * count, 0.001)):
            layer.weight = nn.Parameter(grown(layer.weight, rows, std))
            layer.bias = nn.Parameter(grown(layer.bias, rows))
            layer.out_features = len(layer.bias)

    def _proposals(self, outputs: Outputs) -> list[Tensor]:
        """Boxes ``(N, 4)`` for each image; no gradient goes through them."""
        objectness, deltas = (outputs.named[name].detach() for name in ("objectness", "bbox_regression"))
        batch = len(objectness)
        boxes = self.regions.box_coder.decode(deltas, [outputs.anchors] * batch).view(batch, -1, 4)
        sizes = [outputs.image_size] * batch
        return self.regions.filter_proposals(boxes, objectness, sizes, outputs.counts)[0]

    def _looked(self, outputs: Outputs, boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits ``(N, K + 1)``, background first, and deltas ``(N, 4 (K + 1))`` of all images' boxes."""
        logits, deltas = self.look.box_predictor(self.look.box_head(self.look.box_roi_pool(outputs.levels, boxes)))
        return logits.float(), deltas.float()

    def _anchor_losses(self, outputs: Outputs, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        anchors = [outputs.anchors] * len(targets)
        found, boxes = (torch.stack(each) for each in self.regions.assign_targets_to_anchors(anchors, targets))
        ignored = torch.stack([overlooked(outputs.anchors, target) for target in targets])
        found = found.masked_fill(ignored & (found == 0), _LEFT_OUT)
        share = shares(found, self.regions.fg_bg_sampler) / len(targets)  # (B, P)
        objectness, deltas = outputs.named["objectness"], outputs.named["bbox_regression"]
        image, anchor = torch.nonzero(found >= 1, as_tuple=True)
        wanted = self.regions.box_coder.encode_single(boxes[image, anchor], outputs.anchors[anchor])
        return {
            "objectness": functional.binary_cross_entropy_with_logits(objectness, found, share, reduction="sum"),
            "proposals": _box_loss(deltas[image, anchor], wanted, share[image, anchor]),
        }

    def _region_losses(self, outputs: Outputs, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        boxes, names = [target["boxes"] for target in targets], [target["labels"] + 1 for target in targets]
        proposals = self.look.add_gt_proposals(self._proposals(outputs), boxes)
        matched, found = self.look.assign_targets_to_proposals(proposals, boxes, names)
        ignored = (overlooked(boxes, target) for boxes, target in zip(proposals, targets, strict=True))
        found = [row.masked_fill(one & (row == 0), _LEFT_OUT) for row, one in zip(found, ignored, strict=True)]
        share = torch.cat([shares(labels, self.look.fg_bg_sampler) for labels in found]) / len(targets)
        labels = torch.cat(found)
        logits, deltas = self._looked(outputs, proposals)
        row = torch.nonzero(labels >= 1)[:, 0]
        pairs = zip(boxes, matched, found, strict=True)
        truth = torch.cat([box[index[label >= 1]] for box, index, label in pairs])
        wanted = self.look.box_coder.encode_single(truth, torch.cat(proposals)[row])
        return {
            "classification": (share * functional.cross_entropy(logits, labels.clamp(min=0), reduction="none")).sum(),
            "regression": _box_loss(deltas.unflatten(1, (-1, 4))[row, labels[row]], wanted, share[row]),
        }


class RegionPool(nn.Module):
    """RoIAlign from the level on which a region is ``resolution`` to twice as many cells wide.

    torchvision's `MultiScaleRoIAlign` guesses strides as powers of two, keeps those of its first batch, and takes a
    cell's centre for its corner.

    Args:
        strides: pixels per cell of each level, finest first.
        resolution: cells of the output in each direction.
    """

    def __init__(self, strides: Sequence[int], resolution: int) -> None:
        super().__init__()
        self.strides, self.resolution = tuple(strides), resolution

    def forward(self, levels: Sequence[Tensor], boxes: list[Tensor]) -> Tensor:
        """``levels`` of ``(B, C, H, W)`` and boxes ``(N_b, 4)`` of each image, in pixels, to ``(N, C, R, R)``."""
        rois = torch.cat([functional.pad(box, (1, 0), value=index) for index, box in enumerate(boxes)])
        bounds = torch.tensor([float(self.resolution * stride) for stride in self.strides[1:]], device=rois.device)
        place = torch.bucketize(box_area(rois[:, 1:]).sqrt(), bounds, right=True)
        pooled = levels[0].new_zeros(len(rois), levels[0].shape[1], self.resolution, self.resolution)
        for index, (level, stride) in enumerate(zip(levels, self.strides, strict=True)):
            rows = torch.nonzero(place == index)[:, 0]
            pooled[rows] = roi_align(level, rois[rows], self.resolution, 1 / stride, sampling_ratio=2, aligned=True)
        return pooled


def shares(labels: Tensor, sampler: BalancedPositiveNegativeSampler) -> Tensor:
    """How often torchvision's sampler would draw each element, over the number that it draws; each row's sum is 1.

    Args:
        labels: ``(..., N)``: 0 for the background, positive for an object, negative for what is ignored.
    """
    groups = labels >= 1, labels == 0
    objects, background = (group.sum(-1, keepdim=True) for group in groups)
    drawn = objects.clamp(max=int(sampler.batch_size_per_image * sampler.positive_fraction))
    others = background.clamp(max=sampler.batch_size_per_image - drawn)
    share = groups[0] * drawn / objects.clamp(min=1) + groups[1] * others / background.clamp(min=1)
    return share / (drawn + others).clamp(min=1)


def proposals_for(image_size: tuple[int, int]) -> int:
    """One for each 20 x 20 pixels, from 32 to 256."""
    return min(max(math.prod(image_size) // 400, 32), 256)


def _box_loss(deltas: Tensor, wanted: Tensor, share: Tensor) -> Tensor:
    each = functional.smooth_l1_loss(deltas, wanted, beta=_BETA, reduction="none").sum(-1)
    return (share * each).sum()
