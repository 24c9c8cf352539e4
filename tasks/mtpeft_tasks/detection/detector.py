"""What the detection heads share: a feature pyramid with anchors, targets by class name, torchvision's detectors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mtpeft.api import FeaturePyramid, Features, FeaturesInfo, Head
from mtpeft_tasks.detection.anchors import CellAnchors, overlooked
from mtpeft_tasks.names import known_positions, unseen

_LOSSES = {"classification": "classification", "bbox_regression": "regression", "bbox_ctrness": "centerness"}

_NEVER = -100.0
"""A logit so low that the focal loss of the background is 0, and has no gradient."""


@dataclass
class Outputs:
    """What a head says of each anchor of the pyramid, levels one after another, finest first.

    Attributes:
        named: under torchvision's names, each ``(B, P, ...)``.
        anchors: ``(P, 4)``, in pixels of the model's input.
        counts: anchors of each level.
        image_size: height and width of the model's input, in pixels.
        levels: the pyramid ``(B, C, H_l, W_l)``, for a head that looks twice.
    """

    named: dict[str, Tensor]
    anchors: Tensor
    counts: list[int]
    image_size: tuple[int, int]
    levels: tuple[Tensor, ...] = ()

    def __getitem__(self, rows: list[int]) -> Outputs:
        """Those of some samples."""
        named = {name: value[rows] for name, value in self.named.items()}
        return replace(self, named=named, levels=tuple(level[rows] for level in self.levels))


class Detector(Head):
    """A detection head: the same in training and evaluation, and for each sample whatever else the batch holds.

    Args:
        info: what the backbone gives.
        classes: names of the objects.
        width: channels of the pyramid and the head, a multiple of 32 (GroupNorm has 32 groups).
        anchors: on the levels of the pyramid.

    Raises:
        UsageError: for strides that cannot be made.
    """

    def __init__(self, info: FeaturesInfo, classes: Sequence[str], width: int, anchors: CellAnchors) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.image_size, self.finest = info.image_size, min(info.strides)
        self.anchors, self.pyramid = anchors, FeaturePyramid(info, width, anchors.strides)

    @abstractmethod
    def forward(self, features: Features) -> Outputs: ...

    @abstractmethod
    def losses(self, outputs: Outputs, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Each a mean over the images of what that image alone would give.

        Args:
            targets: ``boxes (N, 4)``, in pixels of the model's input, ``labels (N,)``, indices into ``classes``, and
                maybe ``ignored (M, 4)``: what is found there costs nothing.
        """

    @abstractmethod
    def detect(self, outputs: Outputs) -> list[dict[str, Tensor]]:
        """``{"boxes" (N, 4), "scores" (N,), "labels" (N,)}`` for each image, in pixels of the model's input."""

    @abstractmethod
    def grow(self, count: int) -> None:
        """Add outputs for ``count`` classes behind those there are, which stay bit-identical."""

    def extend(self, classes: Sequence[str], info: FeaturesInfo | None = None) -> None:
        new = unseen(classes, self.classes)
        self.classes += new
        self.grow(len(new))

    def loss(self, outputs: Outputs, targets: list[dict[str, Any]]) -> dict[str, Tensor]:
        """`losses` over the images that have ``boxes`` (maybe none in them); 0 where no image has."""
        rows = [row for row, target in enumerate(targets) if "boxes" in target]
        if not rows:
            start = outputs.anchors.new_zeros(())
            return {"classification": sum((value.sum() for value in outputs.named.values()), start) * 0.0}
        return self.losses(outputs[rows], [self._known(targets[row]) for row in rows])

    def _known(self, target: dict[str, Any]) -> dict[str, Tensor]:
        """Boxes and labels, the latter as indices into the head's classes."""
        labels = known_positions([target["classes"][label] for label in target["labels"].tolist()], self.classes)
        ignored = {name: target[name] for name in ("ignored",) if name in target}
        return {"boxes": target["boxes"], "labels": labels.to(target["boxes"].device), **ignored}

    def _outputs(
        self, features: Features, maps: list[Tensor], named: dict[str, Tensor], levels: tuple[Tensor, ...] = ()
    ) -> Outputs:
        named = {name: value.float() for name, value in named.items()}
        size = self._image_size(features.maps[0])
        return Outputs(named, self.anchors.of(maps), self.anchors.counts(maps), size, levels)

    def _image_size(self, finest: Tensor) -> tuple[int, int]:
        """The described image size, scaled where the maps come from a smaller or larger image."""
        height, width = self.image_size
        rows, columns = (-(-side // self.finest) for side in self.image_size)
        return round(height * finest.shape[-2] / rows), round(width * finest.shape[-1] / columns)


class OneStage(Detector):
    """A detector whose ``detector``, a model of torchvision, says all of each anchor in one look."""

    detector: Any

    def forward(self, features: Features) -> Outputs:
        maps = self.pyramid(features)
        return self._outputs(features, maps, self.detector.head(maps))

    def losses(self, outputs: Outputs, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        ignored = torch.stack([overlooked(outputs.anchors, target) for target in targets])
        logits = outputs.named["cls_logits"].masked_fill(ignored[..., None], _NEVER)
        named = {**outputs.named, "cls_logits": logits}
        found = self.compute(targets, named, [outputs.anchors] * len(targets), outputs.counts)
        return {_LOSSES[name]: value for name, value in found.items()}

    @abstractmethod
    def compute(
        self, targets: list[dict[str, Tensor]], named: dict[str, Tensor], anchors: list[Tensor], counts: list[int]
    ) -> dict[str, Tensor]:
        """torchvision's losses by torchvision's names."""

    def detect(self, outputs: Outputs) -> list[dict[str, Tensor]]:
        levels = {name: list(value.split(outputs.counts, dim=1)) for name, value in outputs.named.items()}
        anchors, batch = list(outputs.anchors.split(outputs.counts)), len(outputs.named["cls_logits"])
        return self.detector.postprocess_detections(levels, [anchors] * batch, [outputs.image_size] * batch)


class NoBackbone(nn.Module):
    """Stands where torchvision's models want a backbone; the host has one already."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels
