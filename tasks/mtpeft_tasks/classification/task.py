"""The task type ``cls``: one class for each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mtpeft.api import FeaturesInfo, Fraction, Head, Metric, Sample
from mtpeft_tasks.classification.metric import Accuracy
from mtpeft_tasks.digits import Kind
from mtpeft_tasks.drawing import caption, said
from mtpeft_tasks.images import ImageTask
from mtpeft_tasks.names import known_positions, make_head


@dataclass
class Classification(ImageTask):
    """One class for each image; without ``data``, one handwritten digit.

    Attributes:
        label_smoothing: of the cross-entropy.
    """

    metric_name: ClassVar[str] = "top-1"
    digits: ClassVar[Kind] = "cls"
    gives: ClassVar[str] = "label"
    classifies: ClassVar[bool] = True
    fewest_classes: ClassVar[int] = 2

    label_smoothing: Fraction = 0.0

    def head(self, info: FeaturesInfo, classes: Sequence[str]) -> Head:
        return make_head(("cls",), "linear", self.head_config, info, classes)

    def loss(self, head: Head, outputs: Tensor, targets: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Cross-entropy over the samples that have a label; 0 where none has."""
        rows = [row for row, target in enumerate(targets) if "label" in target]
        names = [targets[row]["classes"][int(targets[row]["label"])] for row in rows]
        labels = known_positions(names, head.classes).to(outputs.device)
        if not rows:
            return {"cross_entropy": outputs.sum() * 0.0}
        loss = F.cross_entropy(outputs[rows].float(), labels, label_smoothing=self.label_smoothing)
        return {"cross_entropy": loss}

    def decode(self, head: Head, outputs: Tensor, targets: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """``{"label": index into head.classes, "probabilities": (K,)}``."""
        probabilities = outputs.detach().float().softmax(-1).cpu()
        return [{"label": int(torch.argmax(row)), "probabilities": row} for row in probabilities]

    def metric(self, classes: Sequence[str]) -> Metric:
        return Accuracy(classes)

    def describe(self, prediction: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
        """The class, its probability, and the five most probable."""
        probabilities = prediction["probabilities"]
        best = probabilities.topk(min(5, len(probabilities)))
        top = {classes[i]: round(p, 6) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)}
        label = prediction["label"]
        return {"class": classes[label], "probability": round(float(probabilities[label]), 6), "top": top}

    def draw(self, image: Image.Image, prediction: dict[str, Any], classes: Sequence[str]) -> Image.Image:
        label = prediction["label"]
        return caption(image, said(classes[label], float(prediction["probabilities"][label])))

    def truth(self, target: dict[str, Any]) -> dict[str, Any]:
        label = int(target["label"])
        return {"label": label, "probabilities": F.one_hot(torch.tensor(label), len(target["classes"])).float()}

    def faults(self, sample: Sample) -> list[str]:
        label, count = int(sample.target.get("label", 0)), len(sample.target["classes"])
        return [] if 0 <= label < count else [f"label {label} is none of the {count} classes"]
