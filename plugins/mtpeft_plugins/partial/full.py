"""Full fine-tuning: a trained copy of every parameter takes its place, so the backbone itself stays as it was."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from mtpeft.api import Method, Site, WeightPart


class Replacement(WeightPart):
    """A trained tensor in the place of the frozen one, equal to it at the start."""

    replaces = True

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.value = nn.Parameter(site.weight.clone())

    def forward(self, weight: Tensor) -> Tensor:
        return self.value


@dataclass
class Full(Method):
    """Trains every parameter: the reference that the other methods are measured against."""

    mergeable = True
    families = "all"
    learning_rate = 3e-4

    at: str = "parameter"

    def part(self, site: Site) -> WeightPart:
        return Replacement(site)
