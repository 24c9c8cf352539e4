"""Replacement: a trained tensor in the place of a frozen one."""

from __future__ import annotations

from torch import Tensor, nn

from mtpeft.peft.parts import WeightPart
from mtpeft.peft.sites import Site


class Replacement(WeightPart):
    """A trained tensor in the place of the frozen one, equal to it at the start."""

    replaces = True

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.value = nn.Parameter(site.weight.clone())

    def forward(self, weight: Tensor) -> Tensor:
        return self.value
