"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mtpeft.api import Fraction, Optimizer, UsageError


@dataclass
class Sgd(Optimizer):
    """``v = momentum v + g``, ``w -= lr v``; with ``nesterov``, ``w -= lr (g + momentum v)``."""

    momentum: Fraction = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        if self.nesterov and not self.momentum:
            raise UsageError("nesterov = true needs a momentum", hint="set momentum, 0.9 say, or leave nesterov out")

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, momentum=self.momentum, nesterov=self.nesterov)
