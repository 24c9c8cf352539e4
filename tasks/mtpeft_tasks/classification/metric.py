"""Top-1 accuracy from counts, and the mean average precision of several labels."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor

from mtpeft.api import Form, Metric, Score
from mtpeft_tasks.names import UNKNOWN, positions, require_same_classes

CORRECT = Form("ratio", ("correct", "total"), 100)
MEAN = Form("mean", ("per_class",))


class Accuracy(Metric):
    """Percent of labelled samples whose class was predicted; classes are compared by name.

    ``detail`` keeps ``correct``, ``total`` and ``per_class = {name: [correct, total]}``. Where the head knows classes
    that a sample's task does not have, the score is ``task_aware`` too: the most probable of the task's own classes.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.seen = 0
        self.correct: Counter[str] = Counter()
        self.total: Counter[str] = Counter()
        self.aware: Counter[str] = Counter()
        self.others = False
        self._index: dict[tuple[str, ...], Tensor | None] = {}

    def update(self, predictions: Sequence[dict[str, Any]], targets: Sequence[dict[str, Any]]) -> None:
        for prediction, target in zip(predictions, targets, strict=True):
            self.seen += 1
            if "label" in target:
                name = target["classes"][int(target["label"])]
                self.total[name] += 1
                self.correct[name] += self.classes[prediction["label"]] == name
                self.aware[name] += self._answer_among(target["classes"], prediction) == name

    def merge(self, other: Self) -> None:
        require_same_classes(self.classes, other.classes)
        self.seen += other.seen
        self.others |= other.others
        for mine, theirs in ((self.correct, other.correct), (self.total, other.total), (self.aware, other.aware)):
            mine.update(theirs)

    def compute(self) -> Score:
        aware = Score.of(CORRECT, self.seen, self._counts(self.aware)) if self.others else None
        return Score.of(CORRECT, self.seen, self._counts(self.correct), aware)

    def _counts(self, correct: Counter[str]) -> dict[str, Any]:
        per_class = {name: [correct[name], self.total[name]] for name in sorted(self.total)}
        return {"correct": sum(correct.values()), "total": sum(self.total.values()), "per_class": per_class}

    def _answer_among(self, own: Sequence[str], prediction: dict[str, Any]) -> str | None:
        """The most probable of the classes ``own``; None where the head knows none of them."""
        index = self._others_masked(tuple(own))
        if index is None or "probabilities" not in prediction:
            return self.classes[prediction["label"]]
        self.others = True
        return self.classes[index[int(prediction["probabilities"][index].argmax())]] if len(index) else None

    def _others_masked(self, own: tuple[str, ...]) -> Tensor | None:
        """Where in the head the classes ``own`` stand; None where there are no others."""
        if own not in self._index:
            index = positions(own, self.classes)
            index = index[index != UNKNOWN]
            self._index[own] = index if len(index) < len(self.classes) else None
        return self._index[own]


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

    def merge(self, other: Self) -> None:
        require_same_classes(self.classes, other.classes)
        self.seen += other.seen
        for name in other._shown:
            self._scores[name] += other._scores[name]
            self._shown[name] += other._shown[name]

    def compute(self) -> Score:
        each = {name: self._average_precision(name) for name in sorted(self._shown)}
        positives = {name: sum(self._shown[name]) for name in each}
        return Score.of(MEAN, self.seen, {"per_class": each, "positives": positives})

    def _average_precision(self, name: str) -> float | None:
        from sklearn.metrics import average_precision_score

        if not any(self._shown[name]):
            return None
        if name not in self.classes:
            return 0.0
        return 100 * float(average_precision_score(self._shown[name], self._scores[name]))
