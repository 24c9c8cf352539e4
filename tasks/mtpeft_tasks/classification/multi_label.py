"""The task type ``multi-label``: any number of classes for each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mtpeft.api import FeaturesInfo, Head, Metric, Sample, Share
from mtpeft_tasks.classification.metric import MeanAveragePrecision
from mtpeft_tasks.digits import Kind
from mtpeft_tasks.drawing import caption, said
from mtpeft_tasks.images import ImageTask
from mtpeft_tasks.names import known_positions, make_head

_TOP = 5


@dataclass
class MultiLabel(ImageTask):
    """Any number of classes for each image; without ``data``, which handwritten digits a scene shows.

    A target has ``labels (N,)``, indices into its own ``classes``; it says nothing of classes that are not among them.

    Attributes:
        threshold: a class is predicted from this probability on.
    """

    metric_name: ClassVar[str] = "mAP"
    digits: ClassVar[Kind] = "det"
    gives: ClassVar[str] = "labels"

    threshold: Share = 0.5

    def head(self, info: FeaturesInfo, classes: Sequence[str]) -> Head:
        return make_head(("cls",), "linear", self.head_config, info, classes)

    def loss(self, head: Head, outputs: Tensor, targets: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Binary cross-entropy, for each sample the mean over its target's classes; 0 where no sample has labels."""
        known = [(row, target) for row, target in enumerate(targets) if "labels" in target]
        wanted, weight = (torch.zeros(outputs.shape, device=outputs.device) for _ in range(2))
        for row, target in known:
            places = known_positions(target["classes"], head.classes).to(outputs.device)
            weight[row, places] = 1 / (len(places) * len(known))
            wanted[row, places[target["labels"]]] = 1.0
        loss = F.binary_cross_entropy_with_logits(outputs.float(), wanted, weight, reduction="sum")
        return {"binary_cross_entropy": loss}

    def decode(self, head: Head, outputs: Tensor, targets: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """``{"labels": indices into head.classes, most probable first, "probabilities": (K,)}``."""
        probabilities = outputs.detach().float().sigmoid().cpu()
        order = probabilities.argsort(dim=-1, descending=True, stable=True)
        return [
            {"labels": best[row[best] >= self.threshold], "probabilities": row}
            for row, best in zip(probabilities, order, strict=True)
        ]

    def metric(self, classes: Sequence[str]) -> Metric:
        return MeanAveragePrecision(classes)

    def describe(self, prediction: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
        """Every class from the threshold on with its probability, and the five most probable."""
        probabilities = prediction["probabilities"]
        best = probabilities.topk(min(_TOP, len(probabilities))).indices
        found, top = (
            {classes[index]: round(float(probabilities[index]), 6) for index in indices.tolist()}
            for indices in (prediction["labels"], best)
        )
        return {"classes": found, "top": top}

    def draw(self, image: Image.Image, prediction: dict[str, Any], classes: Sequence[str]) -> Image.Image:
        probabilities = prediction["probabilities"]
        found = [said(classes[index], float(probabilities[index])) for index in prediction["labels"].tolist()]
        return caption(image, ", ".join(found) or "no class")

    def truth(self, target: dict[str, Any]) -> dict[str, Any]:
        probabilities = torch.zeros(len(target["classes"]))
        probabilities[target["labels"]] = 1.0
        return {"labels": target["labels"], "probabilities": probabilities}

    def empty(self, target: dict[str, Any]) -> bool:
        return not len(target.get("labels", ()))

    def faults(self, sample: Sample) -> list[str]:
        labels, count = sample.target.get("labels", torch.zeros(0)).tolist(), len(sample.target["classes"])
        return [f"label {label} is none of the {count} classes" for label in labels if not 0 <= label < count]
