"""Top-1 accuracy from counts, and the mean average precision of several labels."""

from __future__ import annotations

from collections import Counter, defaultdict
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


class MeanAveragePrecision(Metric):
    """Percent: the mean over classes of the average precision, the sum over recall steps of the precision there.

    Samples of one score are one step, so no order can matter. A class is compared by name, over the samples whose
    targets have it among their ``classes``; it is undefined (None) where none of them shows it, and one that
    ``classes`` lacks is never found. ``detail`` keeps ``per_class`` and ``positives``, how many samples show a class.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.seen = 0
        self._scores: defaultdict[str, list[float]] = defaultdict(list)
        self._shown: defaultdict[str, list[bool]] = defaultdict(list)

    def update(self, predictions: Sequence[dict[str, Any]], targets: Sequence[dict[str, Any]]) -> None:
        for prediction, target in zip(predictions, targets, strict=True):
            self.seen += 1
            if "labels" in target:
                scores = dict(zip(self.classes, prediction["probabilities"].tolist(), strict=True))
                shown = {target["classes"][label] for label in target["labels"].tolist()}
                for name in target["classes"]:
                    self._scores[name].append(scores.get(name, 0.0))
                    self._shown[name].append(name in shown)

    def compute(self) -> Score:
        each = {name: self._average_precision(name) for name in sorted(self._shown)}
        defined = [value for value in each.values() if value is not None]
        positives = {name: sum(self._shown[name]) for name in each}
        value = sum(defined) / len(defined) if defined else None
        return Score(value, self.seen, {"per_class": each, "positives": positives})

    def _average_precision(self, name: str) -> float | None:
        from sklearn.metrics import average_precision_score

        if not any(self._shown[name]):
            return None
        if name not in self.classes:
            return 0.0
        return 100 * float(average_precision_score(self._shown[name], self._scores[name]))
