"""COCO average precision, by faster-coco-eval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy
import torch
from torch import Tensor

from mtpeft.api import Form, Metric, Score
from mtpeft_tasks.names import positions, require_same_classes, unseen

MEAN = Form("mean", ("per_class",))
_EVERY_AREA = [0.0, 1e10]


class AveragePrecision(Metric):
    """AP over IoU .50:.95, with AP50, AP75 and each class's AP in the detail, all in percent.

    Undefined (None) where there is no box to find: over all classes, or for a class. A target without ``boxes`` is not
    asked about; boxes that it marks as ``difficult`` are neither asked for nor held against who finds them; classes are
    compared by name, so one that ``classes`` lacks is never found. Predictions of one score are ranked by content: no
    order of images or batches can matter. Boxes are ``(x1, y1, x2, y2)``.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.seen = 0
        self._images: list[tuple[list[str], Tensor, Tensor, numpy.ndarray]] = []  # names, difficult, boxes; found

    def update(self, predictions: Sequence[dict[str, Any]], targets: Sequence[dict[str, Any]]) -> None:
        for prediction, target in zip(predictions, targets, strict=True):
            self.seen += 1
            if "boxes" in target:
                found = _table(prediction["labels"], prediction["scores"], prediction["boxes"])
                self._images.append((*_truth(target), found))

    def merge(self, other: Self) -> None:
        require_same_classes(self.classes, other.classes)
        self.seen += other.seen
        self._images += other._images

    def compute(self) -> Score:
        boxes = sum(int((difficult == 0).sum()) for _, difficult, _, _ in self._images)
        if boxes == 0:
            return Score(None, self.seen, {"boxes": 0})
        classes = self.classes + unseen(sorted(name for names, *_ in self._images for name in names), self.classes)
        precision = self._precision(classes)  # (10 IoU thresholds, 101 recalls, K classes)
        each = {name: _mean(precision[:, :, index]) for index, name in enumerate(classes)}
        detail = {"AP50": _mean(precision[0]), "AP75": _mean(precision[5]), "boxes": boxes, "per_class": each}
        return Score.of(MEAN, self.seen, detail)

    def _precision(self, classes: Sequence[str]) -> numpy.ndarray:
        from faster_coco_eval import COCO, COCOeval_faster

        pairs = [(_table(positions(names, classes), *truth), found) for names, *truth, found in self._images]
        pairs.sort(key=lambda pair: (pair[0].tobytes(), pair[1].tobytes()))
        truths, founds = ([pair[side] for pair in pairs] for side in (0, 1))
        truth, found = COCO(_coco(truths, classes, "iscrowd")), COCO(_coco(founds, classes, "score"))
        evaluation = COCOeval_faster(truth, found, "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [_EVERY_AREA], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
        return evaluation.eval["precision"][:, :, :, 0, -1]


def _truth(target: dict[str, Any]) -> tuple[list[str], Tensor, Tensor]:
    """Names, marks of difficulty and boxes of an image's objects: by name, for shards may meet classes in any order."""
    labels = target["labels"].cpu()
    names = [target["classes"][label] for label in labels.tolist()]
    return names, target.get("difficult", torch.zeros_like(labels)).cpu(), target["boxes"].detach().cpu()


def _coco(tables: list[numpy.ndarray], classes: Sequence[str], field: str) -> dict[str, Any]:
    rows = [(image, row) for image, table in enumerate(tables, 1) for row in table.tolist()]
    return {
        "images": [{"id": image} for image in range(1, len(tables) + 1)],
        "categories": [{"id": index, "name": name} for index, name in enumerate(classes)],
        "annotations": [_annotation(number, image, field, *row) for number, (image, row) in enumerate(rows, 1)],
    }


def _table(labels: Tensor, values: Tensor, boxes: Tensor) -> numpy.ndarray:
    """One row ``(label, value, x1, y1, x2, y2)`` for each box, in an order of their own: largest value first."""
    columns = [tensor.detach().double().cpu().numpy() for tensor in (labels, values, boxes.reshape(-1, 4))]
    table = numpy.column_stack(columns)
    return table[numpy.lexsort([*table.T, -table[:, 1]])]


def _annotation(number: int, image: int, field: str, label: float, value: float, *box: float) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    width, height = x2 - x1, y2 - y1
    bare = {"id": number, "image_id": image, "category_id": int(label), "bbox": [x1, y1, width, height]}
    return {**bare, "area": width * height, "iscrowd": 0, field: value if field == "score" else int(value)}


def _mean(precision: numpy.ndarray) -> float | None:
    """In percent, over the entries that are defined."""
    defined = precision[precision > -1]
    return 100.0 * float(defined.mean()) if len(defined) else None
