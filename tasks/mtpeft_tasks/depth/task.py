"""The task type ``depth``: how far away each pixel is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor

from mtpeft.api import Metric
from mtpeft_tasks import drawing
from mtpeft_tasks.dense import DenseTask, mean_where
from mtpeft_tasks.depth.metric import DepthError
from mtpeft_tasks.digits import Kind
from mtpeft_tasks.maps import NAMES


@dataclass
class DepthEstimation(DenseTask):
    """The distance of each pixel, in the unit of the data; without ``data``, digits as hills."""

    metric_name: ClassVar[str] = "RMSE"
    unit: ClassVar[str] = ""
    higher_is_better: ClassVar[bool] = False
    digits: ClassVar[Kind] = "depth"
    gives: ClassVar[str] = "depth"
    names: ClassVar[tuple[str, ...]] = NAMES["depth"]

    def compare(self, outputs: Tensor, wanted: Tensor, labelled: Tensor) -> dict[str, Tensor]:
        """The absolute error."""
        return {"l1": mean_where(labelled, (outputs - wanted).abs())}

    def read(self, outputs: Tensor) -> Tensor:
        """Distances ``(H, W)``, not below 0."""
        return outputs[0].clamp(min=0)

    def metric(self, classes: Sequence[str]) -> Metric:
        return DepthError()

    def describe(self, prediction: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
        """The map's size and the range of its distances."""
        depth = prediction["depth"]
        found = {"least": depth.min(), "median": depth.median(), "most": depth.max()}
        return {"size": list(depth.shape), **{name: round(float(value), 4) for name, value in found.items()}}

    def draw(self, image: Image.Image, prediction: dict[str, Any], classes: Sequence[str]) -> Image.Image:
        """Near is bright, far is dark."""
        return drawing.heat(image, -prediction["depth"].numpy())
