"""The task type ``normals``: which way the surface faces at each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mtpeft.api import Metric, NonNegative
from mtpeft_tasks import drawing
from mtpeft_tasks.dense import DenseTask, mean_where
from mtpeft_tasks.digits import Kind
from mtpeft_tasks.maps import NAMES
from mtpeft_tasks.normals.metric import AngularError


@dataclass
class SurfaceNormals(DenseTask):
    """The unit vector that stands on the surface at each pixel; without ``data``, digits as hills.

    Attributes:
        distance: between unit vectors: ``l1``, the mean over components, or ``cosine``, ``1 - cos``.
        loss_weight: of the usual sum over dense tasks (Vandenhende et al., TPAMI 2021).
    """

    metric_name: ClassVar[str] = "mErr"
    unit: ClassVar[str] = "degrees"
    higher_is_better: ClassVar[bool] = False
    digits: ClassVar[Kind] = "normals"
    gives: ClassVar[str] = "normals"
    names: ClassVar[tuple[str, ...]] = NAMES["normals"]

    distance: Literal["l1", "cosine"] = "l1"
    loss_weight: NonNegative = 10.0

    def compare(self, outputs: Tensor, wanted: Tensor, labelled: Tensor) -> dict[str, Tensor]:
        outputs, wanted = F.normalize(outputs), F.normalize(wanted)
        if self.distance == "cosine":
            return {"cosine": mean_where(labelled, 1 - (outputs * wanted).sum(1, keepdim=True))}
        return {"l1": mean_where(labelled, (outputs - wanted).abs())}

    def read(self, outputs: Tensor) -> Tensor:
        """Unit vectors ``(3, H, W)``."""
        return F.normalize(outputs, dim=0)

    def metric(self, classes: Sequence[str]) -> Metric:
        return AngularError()

    def describe(self, prediction: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
        """The map's size and its mean vector."""
        normals = prediction["normals"]
        mean = {name: round(float(value), 4) for name, value in zip(self.names, normals.mean((1, 2)), strict=True)}
        return {"size": list(normals.shape[1:]), "mean": mean}

    def draw(self, image: Image.Image, prediction: dict[str, Any], classes: Sequence[str]) -> Image.Image:
        """Components from -1 to 1 as red, green and blue from dark to bright."""
        return drawing.vectors(image, prediction["normals"].numpy())
