"""Mean intersection over union from one confusion matrix of the whole data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from mtpeft.api import Form, Metric, Score
from mtpeft_tasks.maps import IGNORED
from mtpeft_tasks.names import UNKNOWN, positions, require_same_classes

FORM = Form("ratio", ("intersections", "unions", "pixels"), 100)


def confusion(actual: Tensor, predicted: Tensor, count: int) -> Tensor:
    """``(count, count) int64``: how often class i (rows) was predicted as j; 255 in ``actual`` is left out."""
    kept = actual != IGNORED
    pairs = actual[kept].to(torch.int64) * count + predicted[kept].to(torch.int64)
    return torch.bincount(pairs, minlength=count * count).reshape(count, count)


class MeanIoU(Metric):
    """Percent, averaged over the classes that occur in the data; undefined where there is none.

    A pixel of a class that the head does not know counts against the class predicted there. ``detail`` keeps, for each
    class in order of ``classes``, ``intersections``, ``unions`` and ``pixels`` (of that class in the data).
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.matrix = torch.zeros(len(classes) + 1, len(classes) + 1, dtype=torch.int64)  # last: classes not known
        self.seen = 0

    def update(self, predictions: Sequence[dict[str, Any]], targets: Sequence[dict[str, Any]]) -> None:
        for prediction, target in zip(predictions, targets, strict=True):
            self.seen += 1
            if "mask" in target:
                mask = renumbered(target["mask"].cpu(), target["classes"], self.classes, unknown=len(self.classes))
                self.matrix += confusion(mask, prediction["mask"], len(self.classes) + 1)

    def merge(self, other: Self) -> None:
        require_same_classes(self.classes, other.classes)
        self.seen += other.seen
        self.matrix += other.matrix

    def compute(self) -> Score:
        known = len(self.classes)
        pixels = self.matrix.sum(1)[:known]
        intersections = self.matrix.diagonal()[:known]
        unions = pixels + self.matrix.sum(0)[:known] - intersections
        detail = {"classes": list(self.classes), "intersections": intersections.tolist(), "unions": unions.tolist()}
        return Score.of(FORM, self.seen, {**detail, "pixels": pixels.tolist()})


def renumbered(mask: Tensor, names: Sequence[str], classes: Sequence[str], *, unknown: int = IGNORED) -> Tensor:
    """A mask of positions in ``names`` as one ``int64`` of positions in ``classes``; 255 stays."""
    table = torch.full((256,), unknown, dtype=torch.int64)
    table[IGNORED] = IGNORED
    index = positions(names, classes)
    table[: len(index)] = torch.where(index == UNKNOWN, unknown, index)
    return table.to(mask.device)[mask.long()]
