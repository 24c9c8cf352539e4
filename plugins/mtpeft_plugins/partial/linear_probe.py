"""Linear probing: frozen features, trained heads."""

from __future__ import annotations

from dataclasses import dataclass

from mtpeft.api import Declarations, Method, Part, Site


@dataclass
class LinearProbe(Method):
    """Trains the heads alone: the other reference, and the cheapest."""

    declares = Declarations(category="partial", mergeable=True, families="all")

    def part(self, site: Site) -> Part | None:
        return None
