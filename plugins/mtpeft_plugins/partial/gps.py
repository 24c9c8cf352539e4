"""GPS (CVPR 2024, arXiv 2312.10136): for every neuron, the k input weights whose gradient is largest, and its bias.

``W' = W + D`` with ``D`` sparse: k trained entries in each row, those with the largest ``|dL / dW|`` over a few
batches, where ``L`` is the supervised contrastive loss of the pooled features (no head is needed; the task's own loss
for tasks without one label per image). Stored as the entries and their columns, so weight decay draws to the frozen
weights and nothing of their size is trained. Before data was seen, the entries are each row's largest weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtpeft.api import (
    Calibrated,
    Context,
    Count,
    Declarations,
    Method,
    Routine,
    Site,
    WeightPart,
    first_batches,
    summed_gradients,
    uncalibrated,
    zeros,
)


class SparseRows(WeightPart):
    """``k`` values in each row, the columns where they are added, and a shift of the bias where there is one."""

    columns: Tensor

    def __init__(self, site: Site, k: int) -> None:
        super().__init__()
        out, inputs = site.matrix_shape
        self.values = zeros(out, min(k, inputs))
        self.register_buffer("columns", torch.zeros(self.values.shape, dtype=torch.int32))
        self.shift = zeros(out) if site.bias else None
        self.choose(site.weight)

    def choose(self, scores: Tensor) -> None:
        """Train the entries with the largest ``|scores|`` of each row, scores in the weight's shape."""
        self.columns.copy_(scores.flatten(1).abs().topk(self.values.shape[1]).indices)

    def forward(self, weight: Tensor) -> Tensor:
        rows = weight.flatten(1)
        return rows.scatter_add(1, self.columns.long(), self.values.to(rows.dtype)).view_as(weight)

    def bias(self, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        return bias if bias is None or self.shift is None else bias + self.shift


def contrastive(features: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """Supervised contrastive loss of ``features (B, C)`` with ``labels (B,)``; zero where no two labels are equal."""
    unit = F.normalize(features, dim=1)
    self_ = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    log_odds = (unit @ unit.t() / temperature).masked_fill(self_, float("-inf")).log_softmax(1)
    same = (labels[:, None] == labels) & ~self_
    means = log_odds.masked_fill(~same, 0).sum(1) / same.sum(1).clamp(min=1)
    return -means.sum() / same.any(1).sum().clamp(min=1)


@dataclass
class Gps(Method):
    """Trains the few weights of every neuron that the task's gradient asks for."""

    declares = Declarations(
        category="partial",
        mergeable=True,
        families="all; merges where timm saves every bias",
        paper="Gradient-based Parameter Selection, CVPR 2024, arXiv 2312.10136",
    )

    at: str = "linear patch_embed | conv"
    k: Count = 1
    calibration_batches: Count = 16

    def part(self, site: Site) -> WeightPart:
        return SparseRows(site, self.k)

    def common(self, sites: Sequence[Site]) -> nn.Module:
        return Calibrated()

    def routine(self) -> LargestGradients:
        return LargestGradients(self)


class LargestGradients(Routine[Gps]):
    """Chooses the entries before training."""

    def calibrate(self, context: Context) -> None:
        """Choose the entries of each owner once, by the gradients of its tasks."""

        def loss(task: str, images: Tensor, targets: list[dict[str, Any]]) -> Tensor:
            rows = [row for row, target in enumerate(targets) if "label" in target]
            if not rows:
                return context.loss(task, images, targets)
            labels = torch.stack([targets[row]["label"] for row in rows])
            return contrastive(context.host(images, task).pooled[rows], labels)

        for placed, tasks in uncalibrated(self.method, context):
            batches = first_batches(context, tasks, self.method.calibration_batches)
            found = summed_gradients(context, [p.site for p in placed], batches, loss)
            for p, gradient in zip(placed, found or (), strict=bool(found)):
                if gradient.any():  # none where no batch has two images of one class
                    p.part.choose(gradient)
                p.part.common.done.fill_(True)
