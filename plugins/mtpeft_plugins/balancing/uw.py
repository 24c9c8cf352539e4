"""Uncertainty weighting (Kendall, Gal and Cipolla, CVPR 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtpeft.api import Balancer


@dataclass
class Uw(Balancer):
    """``sum w_t l_t / e^{s_t} + s_t / 2`` with a learned log variance s of each task (the form for cross-entropy).

    Attributes:
        initial: s at the beginning of a stage.
    """

    initial: float = 0.0

    def begin(self, weights: Mapping[str, float]) -> None:
        super().begin(weights)
        self.log_variances = {task: nn.Parameter(torch.tensor(float(self.initial))) for task in weights}

    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        logs = {task: self.log_variances[task].to(loss.device) for task, loss in losses.items()}
        terms = [self.weights[t] * loss * (-logs[t]).exp() + logs[t] / 2 for t, loss in losses.items()]
        return torch.stack(terms).sum()

    def parameters(self) -> list[nn.Parameter]:
        return list(self.log_variances.values())

    def state(self) -> dict[str, Tensor]:
        return {task: s.detach().clone() for task, s in self.log_variances.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        for task, s in self.log_variances.items():
            s.data.copy_(state[task])
