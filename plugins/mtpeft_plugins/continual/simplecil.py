"""SimpleCIL (IJCV 2024, arXiv 2303.07338): cosine similarity to class means of frozen features.

``y = argmax_c cos(phi(x), mu_c)`` with ``mu_c`` the mean of the features of the class's training images; nothing is
trained. Logits are cosines times ``scale``, which changes no answer, only how sure it sounds; the paper has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from mtpeft.api import ClassSums, Declarations, FeaturesInfo, Positive
from mtpeft_plugins.continual._closed_form import SolvedHead, SolvedMethod


class Prototypes(SolvedHead):
    """``weight (K, W)``: means of ``W`` features."""

    def __init__(self, info: FeaturesInfo, classes: Sequence[str], width: int, scale: float) -> None:
        super().__init__(info, classes, ClassSums(len(classes), width), width)
        self.scale = scale

    def solved(self, total: ClassSums, stage: ClassSums) -> Tensor:
        return total.means().squeeze(1)

    def logits(self, x: Tensor) -> Tensor:
        return self.scale * F.linear(F.normalize(x, dim=-1), F.normalize(self.weight, dim=-1))


@dataclass
class Simplecil(SolvedMethod):
    """The class whose mean of frozen features has the most similar direction; nothing is trained."""

    declares = Declarations(
        category="continual",
        mergeable=True,
        accepts=("cls",),
        families="all",
        paper="SimpleCIL, IJCV 2024, arXiv 2303.07338",
    )

    scale: Positive = 16.0

    def classifier(self, info: FeaturesInfo, classes: Sequence[str]) -> Prototypes:
        return Prototypes(info, classes, info.pooled, self.scale)
