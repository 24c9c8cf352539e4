"""Random loss weighting (Lin et al., TMLR 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mtpeft.api import Balancer, Whole


@dataclass
class Rlw(Balancer):
    """``softmax(N(0, I))`` on the weighted losses, drawn anew for each batch from a generator of its own.

    Attributes:
        seed: of the draws.
    """

    seed: Whole = 0

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)

    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        factors = torch.randn(len(losses), generator=self.generator).softmax(0).tolist()
        weighted = [self.weights[task] * loss for task, loss in losses.items()]
        return torch.stack([factor * loss for factor, loss in zip(factors, weighted, strict=True)]).sum()

    def state(self) -> dict[str, Tensor]:
        return {"generator": self.generator.get_state()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.generator.set_state(state["generator"])
