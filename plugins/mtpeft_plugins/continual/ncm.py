"""Nearest class mean (TPAMI 2013, 10.1109/TPAMI.2013.83) on frozen features: what a continual method has to beat.

``y = argmin_c ||phi(x) - mu_c||`` with ``mu_c`` the mean of the features of the class's training images. Nothing is
trained and nothing is forgotten: a method whose row is below this one has learned nothing. Logits are
``-||phi(x) - mu_c||^2 / 2``. Where other methods train shared parts beside it, means of earlier classes stay as they
were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mtpeft.api import ClassSums, Declarations, FeaturesInfo
from mtpeft_plugins.continual._closed_form import SolvedHead, SolvedMethod


class Means(SolvedHead):
    """``weight (K, C)``: means."""

    def __init__(self, info: FeaturesInfo, classes: Sequence[str]) -> None:
        super().__init__(info, classes, ClassSums(len(classes), info.pooled), info.pooled)

    def solved(self, total: ClassSums, stage: ClassSums) -> Tensor:
        return total.means().squeeze(1)

    def logits(self, x: Tensor) -> Tensor:
        return -(x[:, None] - self.weight).square().sum(-1) / 2


@dataclass
class Ncm(SolvedMethod):
    """The class with the nearest mean of frozen features; nothing is trained."""

    declares = Declarations(
        category="continual",
        mergeable=True,
        accepts=("cls",),
        families="all",
        paper="Distance-Based Image Classification, TPAMI 2013, 10.1109/TPAMI.2013.83",
    )

    def classifier(self, info: FeaturesInfo, classes: Sequence[str]) -> Means:
        return Means(info, classes)
