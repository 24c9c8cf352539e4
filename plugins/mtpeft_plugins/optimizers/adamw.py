"""AdamW (Loshchilov and Hutter, ICLR 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mtpeft.api import Fraction, Optimizer


@dataclass
class Adamw(Optimizer):
    """Adam with decoupled weight decay."""

    betas: tuple[Fraction, Fraction] = (0.9, 0.999)

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, betas=self.betas)
