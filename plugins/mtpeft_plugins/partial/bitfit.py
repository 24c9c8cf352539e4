"""BitFit (ACL 2022, arXiv 2106.10199): the biases alone."""

from __future__ import annotations

from dataclasses import dataclass

from mtpeft.api import Declarations, Method, Replacement, Site, WeightPart


@dataclass
class Bitfit(Method):
    """Trains the biases of linear layers, convolutions and norms."""

    declares = Declarations(
        category="partial", mergeable=True, families="all", paper="BitFit, ACL 2022, arXiv 2106.10199"
    )

    at: str = "bias"
    norm_bias: bool = True

    def part(self, site: Site) -> WeightPart | None:
        if "norm-parameter" in site.tags and not self.norm_bias:
            return None
        return Replacement(site)
