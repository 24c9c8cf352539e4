"""Saliency as it is scored in the literature: the best of many thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum
from typing import Any, Self

import torch
from torch import Tensor

from mtpeft.api import Form, Metric, Score
from mtpeft_tasks.maps import Map

STEPS = 20
THRESHOLDS = tuple(step / STEPS for step in range(1, STEPS))
BETA_SQUARED = 0.3
FORM = Form("best_f", ("right", "predicted", "right", "salient"), 100, BETA_SQUARED)


def above(values: Tensor, thresholds: Sequence[float]) -> Tensor:
    """``(T,) int64``: how many of the values reach each threshold (ascending)."""
    reached = torch.bucketize(values.double(), torch.tensor(thresholds, dtype=torch.float64), right=True)
    return torch.bincount(reached, minlength=len(thresholds) + 1).flip(0).cumsum(0).flip(0)[1:]


def f_measure(right: Tensor, predicted: Tensor, actual: int, beta_squared: float = 1.0) -> Tensor:
    """``(1 + b) P R / (b P + R)`` for counts ``(T,)``, which is ``(1 + b) right / (predicted + b actual)``."""
    return (1 + beta_squared) * right.double() / (predicted + beta_squared * actual)


class MaxF(Metric):
    """The largest F-measure (beta squared 0.3) over thresholds .05, .10, ..., .95, in percent.

    Precision and recall are of all pixels of the data set (Bruggemann et al., ICCV 2021), and undefined where none is
    salient. ``detail`` keeps ``thresholds``, for each the pixels ``predicted`` and the ``right`` ones among them, how
    many are ``salient``, the ``best`` threshold, and for each threshold ``intersection_over_union``, the mean over
    images in percent; ``mIoU`` is the largest of these from .20 to .90 (Maninis et al., CVPR 2019; an image without
    anything salient counts 1 where nothing is predicted).
    """

    def __init__(self) -> None:
        self.seen = self.salient = 0
        self.predicted = torch.zeros(len(THRESHOLDS), dtype=torch.int64)
        self.right = torch.zeros(len(THRESHOLDS), dtype=torch.int64)
        self.ratios: list[list[float]] = []

    def update(self, predictions: Sequence[dict[str, Any]], targets: Sequence[dict[str, Any]]) -> None:
        for prediction, target in zip(predictions, targets, strict=True):
            self.seen += 1
            if "saliency" in target:
                self._add(prediction["saliency"], target["saliency"].cpu())

    def _add(self, predicted: Tensor, actual: Tensor) -> None:
        labelled = Map.labelled(actual[None])
        if not labelled.any():
            return
        predicted, actual = predicted[labelled], actual[labelled] == 1
        found, right, salient = above(predicted, THRESHOLDS), above(predicted[actual], THRESHOLDS), int(actual.sum())
        union = found + salient - right
        self.predicted += found
        self.right += right
        self.salient += salient
        self.ratios.append(torch.where(union > 0, right.double() / union.clamp(min=1), 1.0).tolist())

    def merge(self, other: Self) -> None:
        self.seen += other.seen
        self.salient += other.salient
        self.predicted += other.predicted
        self.right += other.right
        self.ratios += other.ratios

    def compute(self) -> Score:
        ratios = [100 * fsum(column) / len(self.ratios) for column in zip(*self.ratios, strict=True)]
        usual = [ratio for ratio, threshold in zip(ratios, THRESHOLDS, strict=False) if 0.2 <= threshold <= 0.9]
        detail = {
            "thresholds": list(THRESHOLDS), "predicted": self.predicted.tolist(), "right": self.right.tolist(),
            "salient": self.salient, "intersection_over_union": ratios, "mIoU": max(usual, default=None),
        }  # fmt: skip
        if not self.salient:
            return Score.of(FORM, self.seen, detail)
        scores = f_measure(self.right, self.predicted, self.salient, BETA_SQUARED)
        return Score.of(FORM, self.seen, detail | {"best": THRESHOLDS[int(scores.argmax())]})
