"""RanPAC (NeurIPS 2023, arXiv 2307.02251): ridge regression on random features.

``h = ReLU(phi(x) R)`` with ``R (C, M)`` normal and fixed. Over all samples ever met, ``G = sum h h^T`` and
``Q = sum h y^T``; ``W = (G + lambda I)^-1 Q`` and ``y = argmax W^T h``. The result is that of all tasks met at once, in
any order. ``G`` takes 4 M^2 bytes (400 MB by default), which are counted as statistics.

In the first stage an adapter beside each MLP trains with a linear classifier that is dropped afterwards, then all is
frozen; ``hidden = 0`` leaves it out (the paper's "no phase 1"), and composed with another shared method, that one
trains in the first stage instead. The paper's tuning is SGD with rate 0.01 for 20 epochs.

``lambda`` is the best of 1e-8 to 1e8 on a fifth of the stage's training samples, as in the paper; here every fifth
sample, so that it does not depend on batches, and through one eigendecomposition for all candidates. What is below the
precision of ``G`` is raised to that. The order of tasks decides ``lambda``, and so it is exact only where ``ridge``
gives one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mtpeft.api import (
    SHARED,
    Count,
    Declarations,
    FeaturesInfo,
    Fraction,
    ParallelBottleneck,
    Part,
    Positive,
    Site,
    Statistics,
    Whole,
    refuse_reshaped,
)
from mtpeft_plugins.continual._closed_form import FirstStageOnly, SolvedHead, SolvedMethod

RIDGES = tuple(10.0**power for power in range(-8, 9))
EVERY = 5


class Gram(Statistics):
    """``gram (M, M)`` and ``cross (K, M)``; ``held`` are every fifth sample and label since it was fresh."""

    by_class = ("count", "cross")
    gram: Tensor
    cross: Tensor

    def __init__(self, classes: int, width: int) -> None:
        super().__init__(classes)
        self.register_buffer("gram", torch.zeros(width, width))
        self.register_buffer("cross", torch.zeros(classes, width))
        self.met, self.held = 0, list[tuple[Tensor, Tensor]]()

    def add(self, x: Tensor, labels: Tensor) -> None:
        """``x (B, M)``."""
        x = x.to(self.gram.dtype)
        self.gram.addmm_(x.T, x)
        self.cross.index_add_(0, labels, x)
        self.count.index_add_(0, labels, torch.ones_like(labels))
        fifth = torch.arange(self.met, self.met + len(x), device=x.device) % EVERY == EVERY - 1
        self.held.append((x[fifth], labels[fifth]))
        self.met += len(x)

    def best_ridge(self) -> float:
        """The candidate with the smallest squared error on the held samples, from all others; 1 where none is held."""
        x, labels = torch.cat([x for x, _ in self.held]), torch.cat([labels for _, labels in self.held])
        if not len(x):
            return 1.0
        y = F.one_hot(labels, len(self.cross)).to(x.dtype)
        values, vectors = torch.linalg.eigh(self.gram - x.T @ x)
        mine, theirs = x @ vectors, (self.cross - y.T @ x) @ vectors
        errors = [F.mse_loss(mine / (values.clamp(min=0) + ridge) @ theirs.T, y) for ridge in RIDGES]
        return RIDGES[int(torch.stack(errors).argmin())]


class Ridge(SolvedHead):
    """``projection (C, M)`` fixed, ``weight (K, M)`` solved."""

    projection: Tensor

    def __init__(self, info: FeaturesInfo, classes: Sequence[str], width: int, ridge: float | None) -> None:
        super().__init__(info, classes, Gram(len(classes), width), width)
        self.register_buffer("projection", torch.randn(info.pooled, width))
        self.ridge = ridge

    def lift(self, pooled: Tensor) -> Tensor:
        return (pooled @ self.projection).relu()

    def solved(self, total: Gram, stage: Gram) -> Tensor:
        gram = total.gram
        ridge = stage.best_ridge() if self.ridge is None else self.ridge
        ridge = max(ridge, torch.finfo(gram.dtype).eps * float(gram.diagonal().max()))
        shift = ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        return torch.linalg.solve(gram + shift, total.cross.T).T

    def logits(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


@dataclass
class Ranpac(SolvedMethod):
    """Shared adapters trained in the first stage, then ridge regression on random features."""

    at: str = "mlp"
    projection: Count = 10_000
    ridge: Positive | None = None
    hidden: Whole = 64
    adapter_scale: Positive = 0.1
    dropout: Fraction = 0.1

    @property
    def declares(self) -> Declarations:
        return Declarations(
            category="continual",
            mergeable=self.hidden == 0,
            accepts=("cls",),
            families="backbones with MLP blocks",
            paper="RanPAC, NeurIPS 2023, arXiv 2307.02251",
        )

    def __post_init__(self) -> None:
        self.at = self.at if self.hidden else ""

    def owners(self, task: str | None, seen: Sequence[str]) -> tuple[str, ...]:
        return (SHARED,)

    def part(self, site: Site) -> Part | None:
        if not self.hidden:
            return None
        refuse_reshaped(site)
        return ParallelBottleneck(site.width, self.hidden, self.adapter_scale, self.dropout, norm=False)

    def classifier(self, info: FeaturesInfo, classes: Sequence[str]) -> Ridge:
        return Ridge(info, classes, self.projection, self.ridge)

    def routine(self) -> FirstStageOnly:
        return FirstStageOnly(self)
