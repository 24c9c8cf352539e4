"""Uncertainty weighting (Kendall, Gal and Cipolla, CVPR 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtpeft.api import Balancer


@dataclass
class Uw(Balancer):
    """``sum w_t l_t / e^{s_t} + s_t / 2`` with a learned log variance s of each task (the form for cross-entropy).

    Attributes:
        initial: s of a task when it is first met.
    """

    initial: float = 0.0

    def __post_init__(self) -> None:
        self.log_variances: dict[str, nn.Parameter] = {}

    def begin(self, weights: Mapping[str, float], tasks: Sequence[str]) -> None:
        super().begin(weights, tasks)
        for task in weights:
            if task not in self.log_variances:
                self.log_variances[task] = nn.Parameter(torch.tensor(float(self.initial)))

    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        logs = {task: self.log_variances[task].to(loss.device) for task, loss in losses.items()}
        terms = [self.weights[t] * loss * (-logs[t]).exp() + logs[t] / 2 for t, loss in losses.items()]
        return torch.stack(terms).sum()

    def parameters(self) -> list[nn.Parameter]:
        return list(self.log_variances.values())

    def state(self) -> dict[str, Tensor]:
        return {task: s.detach().clone() for task, s in self.log_variances.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        for task, s in state.items():
            self.log_variances[task].data.copy_(s)
