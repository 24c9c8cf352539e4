"""Full fine-tuning: a trained copy of every parameter takes its place, so the backbone itself stays as it was."""

from __future__ import annotations

from dataclasses import dataclass

from mtpeft.api import Declarations, Method, Replacement, Site, WeightPart


@dataclass
class Full(Method):
    """Trains every parameter: the reference that the other methods are measured against."""

    declares = Declarations(category="partial", mergeable=True, families="all", learning_rate=3e-4)

    at: str = "parameter"

    def part(self, site: Site) -> WeightPart:
        return Replacement(site)
