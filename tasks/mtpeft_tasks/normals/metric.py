"""Angles between surface normals over every pixel of the data set that has one."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum, sqrt
from typing import Any, Self

import torch
from torch import Tensor

from mtpeft.api import Form, Metric, Score
from mtpeft_tasks.maps import Normals

BIN = 0.25
"""Degrees; the usual limits are multiples of it."""
LIMITS = (11.25, 22.5, 30.0)
FORM = Form("ratio", ("degrees", "pixels"))


def angles(one: Tensor, other: Tensor) -> Tensor:
    """Degrees ``(N,)`` between vectors ``(3, N)`` of any length: exact for small angles, where an arc cosine is not."""
    one, other = (v.double() / length(v.double()).clamp(min=1e-12) for v in (one, other))
    return torch.rad2deg(2 * torch.atan2(length(one - other), length(one + other)))


def length(vectors: Tensor) -> Tensor:
    return vectors.square().sum(0).sqrt()  # several times as fast as torch's norm over a short first dimension


class AngularError(Metric):
    """The mean angle in degrees; undefined where no pixel has a normal.

    ``detail`` keeps ``pixels``, ``degrees`` and ``squared`` (sums over them) and a ``histogram`` of the angles in steps
    of 0.25 degrees; and what follows: ``rmse``, ``median`` (interpolated within its step), and ``within``, the percent
    of pixels below 11.25, 22.5 and 30 degrees.
    """

    def __init__(self) -> None:
        self.seen = 0
        self.histogram = torch.zeros(round(180 / BIN), dtype=torch.int64)
        self.degrees: list[float] = []
        self.squared: list[float] = []

    def update(self, predictions: Sequence[dict[str, Any]], targets: Sequence[dict[str, Any]]) -> None:
        for prediction, target in zip(predictions, targets, strict=True):
            self.seen += 1
            if "normals" in target:
                self._add(prediction["normals"], target["normals"].cpu())

    def _add(self, predicted: Tensor, actual: Tensor) -> None:
        labelled = Normals.labelled(actual)
        found = angles(predicted[:, labelled], actual[:, labelled])
        self.degrees.append(float(found.sum()))
        self.squared.append(float(found.square().sum()))
        steps = (found / BIN).long().clamp(max=len(self.histogram) - 1)
        self.histogram += torch.bincount(steps, minlength=len(self.histogram))

    def merge(self, other: Self) -> None:
        self.seen += other.seen
        self.histogram += other.histogram
        self.degrees += other.degrees
        self.squared += other.squared

    def compute(self) -> Score:
        pixels, degrees, squared = int(self.histogram.sum()), fsum(self.degrees), fsum(self.squared)
        detail = {"pixels": pixels, "degrees": degrees, "squared": squared, "histogram": self.histogram.tolist()}
        if not pixels:
            return Score.of(FORM, self.seen, detail)
        below = {str(limit): 100 * int(self.histogram[: round(limit / BIN)].sum()) / pixels for limit in LIMITS}
        found = {"rmse": sqrt(squared / pixels), "median": median(self.histogram), "within": below}
        return Score.of(FORM, self.seen, detail | found)


def median(histogram: Tensor) -> float:
    """Degrees, as if the angles of a step were spread evenly over it."""
    upto = histogram.cumsum(0)
    half = float(upto[-1]) / 2
    step = int((upto >= half).nonzero()[0])
    return BIN * (step + 1 - (float(upto[step]) - half) / float(histogram[step]))
