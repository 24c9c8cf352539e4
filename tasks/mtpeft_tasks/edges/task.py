"""The task type ``edges``: where things end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mtpeft.api import Metric, NonNegative, Share
from mtpeft_tasks import drawing
from mtpeft_tasks.dense import DenseTask, mean_where
from mtpeft_tasks.digits import Kind
from mtpeft_tasks.edges.metric import DilatedF
from mtpeft_tasks.maps import NAMES


@dataclass
class EdgeDetection(DenseTask):
    """How likely each pixel is to be on an edge; without ``data``, the outlines of handwritten digits.

    Attributes:
        positive_weight: of pixels on edges in the loss, the others weigh the rest; .95 for PASCAL-Context, .8 for NYUD.
        tolerance: of the metric, as a fraction of the diagonal: .0075 for PASCAL-Context, .011 for NYUD.
        loss_weight: of the usual sum over dense tasks (Vandenhende et al., TPAMI 2021).
    """

    metric_name: ClassVar[str] = "odsF"
    unit: ClassVar[str] = "% dilated"
    digits: ClassVar[Kind] = "edges"
    gives: ClassVar[str] = "edges"
    names: ClassVar[tuple[str, ...]] = NAMES["edges"]

    positive_weight: Share = 0.95
    tolerance: NonNegative = 0.0075
    loss_weight: NonNegative = 50.0

    def compare(self, outputs: Tensor, wanted: Tensor, labelled: Tensor) -> dict[str, Tensor]:
        """Cross-entropy, in which edges weigh ``positive_weight`` and other pixels 1 minus it."""
        weight = wanted * self.positive_weight + (1 - wanted) * (1 - self.positive_weight)
        entropy = F.binary_cross_entropy_with_logits(outputs, wanted, reduction="none")
        return {"weighted_cross_entropy": mean_where(labelled, weight * entropy)}

    def read(self, outputs: Tensor) -> Tensor:
        """Probabilities ``(H, W)``."""
        return outputs[0].sigmoid()

    def metric(self, classes: Sequence[str]) -> Metric:
        return DilatedF(self.tolerance, self.positive_weight)

    def describe(self, prediction: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
        """The map's size and how much of it is on an edge, from a probability of 0.5."""
        edges = prediction["edges"]
        return {"size": list(edges.shape), "edge": round(float((edges >= 0.5).float().mean()), 6)}

    def draw(self, image: Image.Image, prediction: dict[str, Any], classes: Sequence[str]) -> Image.Image:
        """Edges are white on black."""
        return drawing.lit(image, prediction["edges"].numpy(), plain=True)
