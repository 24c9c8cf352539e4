"""FeCAM (NeurIPS 2023, arXiv 2309.14062): Mahalanobis distance with each class's own covariance.

``y = argmin_c (x - mu_c)^T R_c^-1 (x - mu_c)`` on frozen features. The class's covariance ``S`` is shrunk,
``S_s = S + g1 V1 I + g2 V2 (1 - I)`` with ``V1`` the mean of its diagonal and ``V2`` of its other entries, and
normalised to correlations, ``R_ij = S_s_ij / (s_i s_j)`` with ``s_i^2 = S_s_ii``, so that distances to classes of
different spread compare. Logits are ``-d / 2``.

Features have unit length, as in the released script for ViT, whose ``g2`` is 0 (the paper's is 1). Tukey's
transformation, which the paper applies to the positive features of convolutional networks, is left out: a
transformer's have either sign. A class keeps 8 C^2 bytes, its second moments and ``R^-1`` (4.7 MB at C = 768), counted
as statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mtpeft.api import ClassMoments, Declarations, FeaturesInfo, NonNegative, Statistics
from mtpeft_plugins.continual._closed_form import SolvedHead, SolvedMethod


def shrunk(covariance: Tensor, diagonal: float, others: float) -> Tensor:
    """``S + g1 V1 I + g2 V2 (1 - I)``, each ``(..., C, C)``."""
    width = covariance.shape[-1]
    eye = torch.eye(width, dtype=covariance.dtype, device=covariance.device)
    trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    rest = covariance.sum((-2, -1), keepdim=True) - trace
    return covariance + diagonal * trace / width * eye + others * rest / max(width * (width - 1), 1) * (1 - eye)


def correlations(covariance: Tensor) -> Tensor:
    """``S_ij / (s_i s_j)``; a feature that does not vary is correlated with none."""
    scale = covariance.diagonal(dim1=-2, dim2=-1).sqrt().reciprocal().nan_to_num(0.0, posinf=0.0)
    normalised = covariance * scale[..., :, None] * scale[..., None, :]
    normalised.diagonal(dim1=-2, dim2=-1).fill_(1.0)
    return normalised


class Mahalanobis(SolvedHead):
    """``weight (K, C)``: means; ``precision (K, C, C)``: inverse correlations."""

    by_class = (*SolvedHead.by_class, "precision")
    precision: Tensor

    def __init__(self, info: FeaturesInfo, classes: Sequence[str], diagonal: float, others: float) -> None:
        width = info.pooled
        super().__init__(info, classes, ClassMoments(len(classes), width), width)
        self.register_buffer("precision", torch.zeros(len(classes), width, width))
        self.diagonal, self.others = diagonal, others

    def lift(self, pooled: Tensor) -> Tensor:
        return F.normalize(pooled, dim=-1)

    def solve(self, total: Statistics, stage: Statistics) -> None:
        """Only classes with new samples have another covariance."""
        super().solve(total, stage)
        assert isinstance(total, ClassMoments)
        for label in stage.count.nonzero().flatten().tolist():
            covariance = total.covariance(label).double()
            normalised = correlations(shrunk(covariance, self.diagonal, self.others))
            self.precision[label] = torch.linalg.pinv(normalised, hermitian=True).to(self.precision.dtype)

    def solved(self, total: ClassMoments, stage: ClassMoments) -> Tensor:
        return total.means().squeeze(1)

    def logits(self, x: Tensor) -> Tensor:
        apart = (x[:, None] - self.weight).transpose(0, 1)  # (K, B, C)
        return -((apart @ self.precision) * apart).sum(-1).T / 2


@dataclass
class Fecam(SolvedMethod):
    """The class at the smallest Mahalanobis distance in frozen features; nothing is trained."""

    declares = Declarations(
        category="continual",
        mergeable=True,
        accepts=("cls",),
        families="all",
        paper="FeCAM, NeurIPS 2023, arXiv 2309.14062",
    )

    diagonal: NonNegative = 1.0
    others: NonNegative = 1.0

    def classifier(self, info: FeaturesInfo, classes: Sequence[str]) -> Mahalanobis:
        return Mahalanobis(info, classes, self.diagonal, self.others)
