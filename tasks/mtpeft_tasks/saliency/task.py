"""The task type ``saliency``: what stands out in an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mtpeft.api import Metric, NonNegative
from mtpeft_tasks import drawing
from mtpeft_tasks.dense import DenseTask, mean_where
from mtpeft_tasks.digits import Kind
from mtpeft_tasks.maps import NAMES
from mtpeft_tasks.saliency.metric import MaxF


@dataclass
class Saliency(DenseTask):
    """How likely each pixel is to stand out; without ``data``, the pixels of handwritten digits do.

    Attributes:
        loss_weight: of the usual sum over dense tasks (Vandenhende et al., TPAMI 2021).
    """

    metric_name: ClassVar[str] = "maxF"
    digits: ClassVar[Kind] = "saliency"
    gives: ClassVar[str] = "saliency"
    names: ClassVar[tuple[str, ...]] = NAMES["saliency"]

    loss_weight: NonNegative = 5.0

    def compare(self, outputs: Tensor, wanted: Tensor, labelled: Tensor) -> dict[str, Tensor]:
        """Cross-entropy in which each side weighs as much as the other is frequent (Xie & Tu, ICCV 2015)."""
        salient = mean_where(labelled, wanted)
        weight = wanted * (1 - salient) + (1 - wanted) * salient
        entropy = F.binary_cross_entropy_with_logits(outputs, wanted, reduction="none")
        return {"balanced_cross_entropy": mean_where(labelled, weight * entropy)}

    def read(self, outputs: Tensor) -> Tensor:
        """Probabilities ``(H, W)``."""
        return outputs[0].sigmoid()

    def metric(self, classes: Sequence[str]) -> Metric:
        return MaxF()

    def describe(self, prediction: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
        """The map's size and how much of it is salient, from a probability of 0.5."""
        saliency = prediction["saliency"]
        return {"size": list(saliency.shape), "salient": round(float((saliency >= 0.5).float().mean()), 6)}

    def draw(self, image: Image.Image, prediction: dict[str, Any], classes: Sequence[str]) -> Image.Image:
        """What does not stand out is dark."""
        return drawing.lit(image, prediction["saliency"].numpy())
