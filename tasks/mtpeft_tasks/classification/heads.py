"""Heads on the pooled features: linear, and cosine similarity to one prototype for each class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtpeft.api import Features, FeaturesInfo, Fraction, Head, Positive
from mtpeft_tasks.names import grown, unseen

_STD = 0.01  # small, not zero: a zero head would hold back every gradient of the parts for a step


class Linear(Head):
    """``logits (B, K) = pooled W^T + b``.

    Args:
        info: widths of the features.
        classes: names of the outputs.
        dropout: on the pooled features, in training.
    """

    def __init__(self, info: FeaturesInfo, classes: Sequence[str], *, dropout: Fraction = 0.0) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.dropout = nn.Dropout(dropout)
        self.weight = nn.Parameter(torch.randn(len(self.classes), info.pooled) * _STD)
        self.bias = nn.Parameter(torch.zeros(len(self.classes)))

    def forward(self, features: Features) -> Tensor:
        return F.linear(self.dropout(features.pooled), self.weight, self.bias)

    def extend(self, classes: Sequence[str], info: FeaturesInfo | None = None) -> None:
        new = unseen(classes, self.classes)
        self.classes += new
        self.weight = nn.Parameter(grown(self.weight, len(new), _STD))
        self.bias = nn.Parameter(grown(self.bias, len(new)))


class Cosine(Head):
    """``logits (B, K) = scale * cos(pooled, prototype)``; prototypes are learned or set to class means.

    Args:
        info: widths of the features.
        classes: names of the outputs.
        scale: inverse temperature.
        learn_scale: train the scale too.
    """

    def __init__(
        self,
        info: FeaturesInfo,
        classes: Sequence[str],
        *,
        scale: Positive = 16.0,
        learn_scale: bool = True,
    ) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.weight = nn.Parameter(torch.randn(len(self.classes), info.pooled) * _STD)
        self.scale = nn.Parameter(torch.tensor(float(scale)), requires_grad=learn_scale)

    def forward(self, features: Features) -> Tensor:
        return self.scale * F.linear(F.normalize(features.pooled, dim=-1), F.normalize(self.weight, dim=-1))

    def extend(self, classes: Sequence[str], info: FeaturesInfo | None = None) -> None:
        new = unseen(classes, self.classes)
        self.classes += new
        self.weight = nn.Parameter(grown(self.weight, len(new), _STD))

    @torch.no_grad()
    def set_prototypes(self, pooled: Tensor, labels: Tensor) -> None:
        """Set the prototypes of the classes in ``labels (N,)`` to the means of their ``pooled (N, C)``, normalised."""
        pooled = F.normalize(pooled, dim=-1)
        for label in labels.unique():
            self.weight[label] = pooled[labels == label].mean(0).to(self.weight)
