"""The task type ``seg``: a class for each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from mtpeft.api import FeaturesInfo, Fraction, Head, Metric, Sample
from mtpeft_tasks import drawing
from mtpeft_tasks.dense import at_image_size, at_output_size
from mtpeft_tasks.digits import Kind
from mtpeft_tasks.maps import BACKGROUND, IGNORED
from mtpeft_tasks.names import known_positions, make_head
from mtpeft_tasks.segmentation.metric import MeanIoU, renumbered
from mtpeft_tasks.segmentation.pixels import SegmentationHead
from mtpeft_tasks.some_classes import Others, SomeClasses


@dataclass
class Segmentation(SomeClasses):
    """A class for each pixel; without ``data``, scenes of 1 to 5 handwritten digits.

    Heads: ``linear`` (the default), ``upernet``, ``setr-pup``, ``mask-transformer``, ``query``.

    Attributes:
        label_smoothing: of the cross-entropy over classes.
    """

    metric_name: ClassVar[str] = "mIoU"
    digits: ClassVar[Kind] = "seg"
    gives: ClassVar[str] = "mask"
    fewest_classes: ClassVar[int] = 2
    everywhere: ClassVar[tuple[str, ...]] = (BACKGROUND,)
    native: ClassVar[Others] = "ignore"

    label_smoothing: Fraction = 0.0

    def head(self, info: FeaturesInfo, classes: Sequence[str]) -> Head:
        return make_head(("pixels", "seg"), "linear", self.head_config, info, classes)

    def loss(self, head: SegmentationHead, outputs: Any, targets: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The head's losses over labelled pixels, cross-entropy for all but ``query``; 0 where there is none."""
        size, device = head.extent(outputs), next(head.parameters()).device
        masks = torch.stack([self._mask(head, target, size).to(device) for target in targets])
        return head.loss(outputs, masks, self.label_smoothing)

    def _mask(self, head: Head, target: dict[str, Any], size: tuple[int, int]) -> Tensor:
        """The target at the size of the outputs ``(H, W) int64``, numbered as the head's classes."""
        if "mask" not in target:
            return torch.full(size, IGNORED, dtype=torch.int64)
        known_positions(target["classes"], head.classes)
        mask = renumbered(target["mask"], target["classes"], head.classes)
        return at_output_size(mask[None], size, self.fit, missing=IGNORED)[0]

    def decode(self, head: SegmentationHead, outputs: Any, targets: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """``{"mask": (H, W) uint8 of indices into head.classes}`` at ``target["size"]``."""
        rows = zip(head.scores(outputs), targets, strict=True)
        scores = (at_image_size(row, target["size"], self.fit) for row, target in rows)
        return [{"mask": row.argmax(0).to(torch.uint8).cpu()} for row in scores]

    def metric(self, classes: Sequence[str]) -> Metric:
        return MeanIoU(classes)

    def describe(self, prediction: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
        """The mask's size and how much of it each class covers."""
        mask = prediction["mask"]
        counts = torch.bincount(mask.flatten().long(), minlength=len(classes)).tolist()
        area = {name: round(count / mask.numel(), 6) for name, count in zip(classes, counts, strict=True) if count}
        return {"size": list(mask.shape), "area": area}

    def draw(self, image: Image.Image, prediction: dict[str, Any], classes: Sequence[str]) -> Image.Image:
        plain = [index for index, name in enumerate(classes) if name == BACKGROUND]
        return drawing.mask(image, prediction["mask"].numpy(), classes, plain=plain)

    def empty(self, target: dict[str, Any]) -> bool:
        return "mask" not in target or bool((target["mask"] == IGNORED).all())

    def faults(self, sample: Sample) -> list[str]:
        """A mask of another size than its image, or with a value that is neither a class nor 255."""
        if "mask" not in sample.target:
            return []
        mask, image, count = sample.target["mask"], sample.image, len(sample.target["classes"])
        if tuple(mask.shape) != (image.height, image.width):
            return [f"its mask is {tuple(mask.shape)[::-1]}, and the image {image.size}"]
        values = [value for value in mask.unique().tolist() if value != IGNORED and not 0 <= value < count]
        return [f"its mask has the value {value}, and there are {count} classes" for value in values]
