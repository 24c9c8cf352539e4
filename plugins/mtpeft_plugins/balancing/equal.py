"""The plain weighted sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mtpeft.api import Balancer


@dataclass
class Equal(Balancer):
    """``sum w_t l_t`` with each task's own ``loss_weight``."""

    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([self.weights[task] * loss for task, loss in losses.items()]).sum()
