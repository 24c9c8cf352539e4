"""Errors of depth over every pixel of the data set that has one."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum
from typing import Any, Self

from torch import Tensor

from mtpeft.api import Form, Metric, Score
from mtpeft_tasks.maps import Depth

NEAR = 1.25
FORM = Form("root_ratio", ("squared", "pixels"))


class DepthError(Metric):
    """The root of the mean squared error, in the unit of the data; undefined where no pixel has a depth.

    ``detail`` keeps ``pixels`` and the sums over them: ``squared`` and ``relative`` errors, and how many are ``near``
    (``max(p / d, d / p) < 1.25``); and what follows: ``absrel``, their mean relative error, and ``delta1``, the percent
    that is near (Eigen et al., NeurIPS 2014).
    """

    def __init__(self) -> None:
        self.seen = self.pixels = self.near = 0
        self.squared: list[float] = []
        self.relative: list[float] = []

    def update(self, predictions: Sequence[dict[str, Any]], targets: Sequence[dict[str, Any]]) -> None:
        for prediction, target in zip(predictions, targets, strict=True):
            self.seen += 1
            if "depth" in target:
                self._add(prediction["depth"], target["depth"].cpu())

    def _add(self, predicted: Tensor, actual: Tensor) -> None:
        labelled = Depth.labelled(actual[None])
        predicted, actual = predicted[labelled].double(), actual[labelled].double()
        error = (predicted - actual).abs()
        self.pixels += len(actual)
        self.squared.append(float(error.square().sum()))
        self.relative.append(float((error / actual).sum()))
        self.near += int(((predicted < NEAR * actual) & (actual < NEAR * predicted)).sum())

    def merge(self, other: Self) -> None:
        self.seen += other.seen
        self.pixels += other.pixels
        self.near += other.near
        self.squared += other.squared
        self.relative += other.relative

    def compute(self) -> Score:
        squared, relative = fsum(self.squared), fsum(self.relative)
        counts = {"pixels": self.pixels, "squared": squared, "relative": relative, "near": self.near}
        if not self.pixels:
            return Score.of(FORM, self.seen, counts)
        found = {"absrel": relative / self.pixels, "delta1": 100 * self.near / self.pixels}
        return Score.of(FORM, self.seen, counts | found)
