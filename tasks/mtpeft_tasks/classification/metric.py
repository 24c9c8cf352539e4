"""Top-1 accuracy from counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from mtpeft.api import Metric, Score


class Accuracy(Metric):
    """Percent of labelled samples whose class was predicted; classes are compared by name.

    ``detail`` keeps ``correct``, ``total`` and ``per_class = {name: [correct, total]}``.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.seen = 0
        self.correct: Counter[str] = Counter()
        self.total: Counter[str] = Counter()

    def update(self, predictions: Sequence[dict[str, Any]], targets: Sequence[dict[str, Any]]) -> None:
        for prediction, target in zip(predictions, targets, strict=True):
            self.seen += 1
            if "label" in target:
                name = target["classes"][int(target["label"])]
                self.total[name] += 1
                self.correct[name] += self.classes[prediction["label"]] == name

    def compute(self) -> Score:
        correct, total = sum(self.correct.values()), sum(self.total.values())
        per_class = {name: [self.correct[name], self.total[name]] for name in sorted(self.total)}
        detail = {"correct": correct, "total": total, "per_class": per_class}
        return Score(100 * correct / total if total else None, self.seen, detail)
