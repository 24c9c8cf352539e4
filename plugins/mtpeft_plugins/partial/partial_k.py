"""Partial-k: the last k blocks are trained whole, the rest stays frozen (the ``Partial-1`` baseline of VPT, ECCV 2022).

``theta' = theta`` outside blocks ``L - k + 1 ... L``. With ``final_norm`` the norm behind the last block trains too.
"""

from __future__ import annotations

from dataclasses import dataclass

from mtpeft.api import Count, Declarations, Method, NotApplicable, Replacement, Site, WeightPart


@dataclass
class PartialK(Method):
    """Trains every parameter of the last k blocks; no gradient runs through the blocks before them."""

    declares = Declarations(
        category="partial",
        mergeable=True,
        families="all",
        learning_rate=1e-4,
        paper="Partial-1 in Visual Prompt Tuning, ECCV 2022, arXiv 2203.12119",
    )

    at: str = "parameter"
    k: Count = 1
    final_norm: bool = False

    def part(self, site: Site) -> WeightPart | None:
        count = len(site.model.blocks)
        if self.k > count:
            raise NotApplicable(f"partial-k is to train {self.k} blocks, and {site.model.family} has {count}")
        last = site.block is not None and site.block >= count - self.k
        norm = self.final_norm and site.name.startswith("final_norm.")
        return Replacement(site) if last or norm else None
