"""Edges, scored by the F-measure at the best threshold of the data set, with a tolerance in place."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum, hypot, isqrt
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from mtpeft.api import Form, Metric, Score
from mtpeft_tasks.maps import Edges
from mtpeft_tasks.saliency.metric import above

THRESHOLDS = tuple(step / 100 for step in range(1, 100))
FORM = Form("best_f", ("right", "predicted", "found", "labelled"), 100)
_LEAST = 1e-6


def largest_within(values: Tensor, radius: float) -> Tensor:
    """At each pixel the largest of ``values (H, W)`` within ``radius`` pixels of it."""
    height, reach = values.shape[0], int(radius)
    padded = F.pad(values, (0, 0, reach, reach), value=float("-inf"))
    found = values
    for down in range(-reach, reach + 1):
        half = isqrt(int(radius**2 - down**2))
        row = padded[reach + down : reach + down + height]
        found = found.maximum(F.max_pool1d(row, 2 * half + 1, stride=1, padding=half))
    return found


class DilatedF(Metric):
    """The F-measure at the one threshold that is best for the whole data set (ODS), without one-to-one matching.

    A predicted pixel is right if a labelled edge lies within the tolerance, and a labelled one is found if a prediction
    does. The published measure (Martin et al., TPAMI 2004) thins the prediction and matches each pixel of it to at most
    one of the labels; here predictions are taken as they are and many may stand for one, so values are **not**
    comparable with published odsF: they are too high where several parallel lines are predicted for one, and too low
    where a line is predicted thicker than the tolerance. Hence the unit, "% dilated".

    ``detail`` keeps, for the thresholds .01, .02, ..., .99, the pixels ``predicted``, those that are ``right`` and the
    labelled that are ``found``; how many are ``labelled``, the ``best`` threshold, and the ``loss``: the weighted
    cross-entropy over all labelled pixels.

    Args:
        tolerance: as a fraction of the image's diagonal; it is one pixel at least.
        positive_weight: of pixels on edges, in the loss.
    """

    def __init__(self, tolerance: float, positive_weight: float) -> None:
        self.tolerance, self.positive_weight = tolerance, positive_weight
        self.seen = self.pixels = self.labelled = 0
        self.predicted, self.right, self.found = (torch.zeros(len(THRESHOLDS), dtype=torch.int64) for _ in range(3))
        self.losses: list[float] = []

    def update(self, predictions: Sequence[dict[str, Any]], targets: Sequence[dict[str, Any]]) -> None:
        for prediction, target in zip(predictions, targets, strict=True):
            self.seen += 1
            if "edges" in target:
                self._add(prediction["edges"], target["edges"].cpu())

    def _add(self, predicted: Tensor, actual: Tensor) -> None:
        labelled, edges = Edges.labelled(actual[None]), actual == 1
        radius = max(1.0, self.tolerance * hypot(*actual.shape))
        near = largest_within(edges.float(), radius) > 0
        best = largest_within(torch.where(labelled, predicted, 0.0), radius)
        self.predicted += above(predicted[labelled], THRESHOLDS)
        self.right += above(predicted[labelled & near], THRESHOLDS)
        self.found += above(best[edges], THRESHOLDS)
        self.labelled += int(edges.sum())
        self.pixels += int(labelled.sum())
        self.losses.append(self._loss(predicted[labelled].double(), edges[labelled]))

    def _loss(self, predicted: Tensor, edges: Tensor) -> float:
        likely = torch.where(edges, predicted, 1 - predicted).clamp(min=_LEAST)
        weight = torch.where(edges, self.positive_weight, 1 - self.positive_weight)
        return float((-weight * likely.log()).sum())

    def merge(self, other: Self) -> None:
        self.seen += other.seen
        self.pixels += other.pixels
        self.labelled += other.labelled
        self.predicted += other.predicted
        self.right += other.right
        self.found += other.found
        self.losses += other.losses

    def compute(self) -> Score:
        detail: dict[str, Any] = {
            "predicted": self.predicted.tolist(), "right": self.right.tolist(), "found": self.found.tolist(),
            "labelled": self.labelled, "pixels": self.pixels,
            "loss": fsum(self.losses) / self.pixels if self.pixels else None,
        }  # fmt: skip
        if not self.labelled:
            return Score.of(FORM, self.seen, detail)
        precision = self.right.double() / self.predicted.clamp(min=1)
        recall = self.found.double() / self.labelled
        scores = 2 * precision * recall / (precision + recall).clamp(min=_LEAST)
        return Score.of(FORM, self.seen, detail | {"best": THRESHOLDS[int(scores.argmax())]})
