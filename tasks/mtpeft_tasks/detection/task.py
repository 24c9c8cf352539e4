"""The task type ``det``: boxes with classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from mtpeft.api import DataError, FeaturesInfo, Head, ImageConfig, Sample
from mtpeft_tasks import drawing
from mtpeft_tasks.detection.average_precision import AveragePrecision
from mtpeft_tasks.detection.detector import Detector, Outputs
from mtpeft_tasks.digits import Kind
from mtpeft_tasks.names import make_head
from mtpeft_tasks.some_classes import Others, SomeClasses
from mtpeft_tasks.transforms import boxes_to_size

_SHOWN = 0.3


@dataclass
class Detection(SomeClasses):
    """Boxes with classes; without ``data``, scenes of 1 to 5 handwritten digits.

    A target has ``boxes (N, 4)``, xyxy in pixels of the input in training and of the image in evaluation, ``labels
    (N,)``, indices into its own ``classes``, and maybe ``difficult (N,)`` and ``ignored (M, 4)``, boxes in which
    nothing is held against what is found. An image may hold no object. Heads: ``fcos`` (the default), ``retinanet``,
    ``faster-rcnn``.
    """

    metric_name: ClassVar[str] = "AP"
    digits: ClassVar[Kind] = "det"
    gives: ClassVar[str] = "boxes"
    native: ClassVar[Others] = "background"

    others: Others = "background"

    def head(self, info: FeaturesInfo, classes: Sequence[str]) -> Head:
        return make_head(("det",), "fcos", self.head_config, info, classes)

    def transform(self, image: ImageConfig, *, train: bool) -> Callable[[Sample], tuple[Tensor, dict[str, Any]]]:
        return Checked(super().transform(image, train=train))

    def loss(self, head: Detector, outputs: Outputs, targets: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The head's losses (FCOS: focal ``classification``, GIoU ``regression``, ``centerness``), means over images.

        Each image's loss is what it would be alone, divided by its own number of positives, so that the mean over a
        batch is the mean over its parts: accumulating gradients or mixing tasks changes nothing.
        """
        return head.loss(outputs, targets)

    def decode(self, head: Detector, outputs: Outputs, targets: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """``{"boxes" (N, 4), "scores" (N,), "labels" (N,)}`` for each sample, best score first."""
        found = [{name: value.detach().cpu() for name, value in image.items()} for image in head.detect(outputs)]
        for image, target in zip(found, targets, strict=True):
            height, width = (int(side) for side in target["size"])
            image["boxes"] = boxes_to_size(image["boxes"], (height, width), outputs.image_size, self.fit)
        return found

    def metric(self, classes: Sequence[str]) -> AveragePrecision:
        return AveragePrecision(classes)

    def describe(self, prediction: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
        """``{"objects": [{"class", "score", "box": [x1, y1, x2, y2]}, ...]}``, best score first."""
        rows = zip(*(prediction[name].tolist() for name in ("labels", "scores", "boxes")), strict=True)
        return {"objects": [{"class": classes[label], "score": score, "box": box} for label, score, box in rows]}

    def draw(self, image: Image.Image, prediction: dict[str, Any], classes: Sequence[str]) -> Image.Image:
        """The image with the boxes that score at least 0.3; lower ones would hide it."""
        shown = prediction["scores"] >= _SHOWN
        return drawing.boxes(image, {name: value[shown] for name, value in prediction.items()}, classes)

    def truth(self, target: dict[str, Any]) -> dict[str, Any]:
        boxes, labels = target["boxes"], target["labels"]
        return {"boxes": boxes, "labels": labels, "scores": torch.ones(len(boxes))}

    def empty(self, target: dict[str, Any]) -> bool:
        return not len(target.get("boxes", ()))

    def faults(self, sample: Sample) -> list[str]:
        """Boxes without area or outside their image, labels that are no class, one of them more than of the other."""
        if self.empty(sample.target):
            return []
        boxes, labels, count = sample.target["boxes"], sample.target["labels"], len(sample.target["classes"])
        if len(boxes) != len(labels):
            return [f"it has {len(boxes)} boxes and {len(labels)} labels"]
        limit = boxes.new_tensor([sample.image.width, sample.image.height])
        inside = (boxes >= 0).all(1) & (boxes[:, 2:] <= limit).all(1)
        named = (labels >= 0) & (labels < count)
        wrong = {"has no area": ~_has_area(boxes), "is outside its image": ~inside, f"is of no class ({count})": ~named}
        rows = [(row, fault) for fault, those in wrong.items() for row in those.nonzero()[:, 0].tolist()]
        return [f"box {row + 1} {fault}: {_shown(boxes[row])}" for row, fault in sorted(rows)]


@dataclass(frozen=True)
class Checked:
    """A transform that refuses a box without area before it is used (a corrupt one would silently never be learned)."""

    transform: Callable[[Sample], tuple[Tensor, dict[str, Any]]]

    def __call__(self, sample: Sample) -> tuple[Tensor, dict[str, Any]]:
        boxes = sample.target.get("boxes", torch.zeros(0, 4))
        bad = ~_has_area(boxes)
        if bad.any():
            raise DataError(
                f"{sample.name} has a box without area: {_shown(boxes[bad][0])} (x1, y1, x2, y2).",
                hint="remove the box, or swap its corners so that x1 < x2 and y1 < y2",
            )
        return self.transform(sample)


def _has_area(boxes: Tensor) -> Tensor:
    """``(N,) bool``, False also where a coordinate is not a number."""
    return (boxes[:, 2:] > boxes[:, :2]).all(1)


def _shown(box: Tensor) -> list[float]:
    return [round(value, 2) for value in box.tolist()]
