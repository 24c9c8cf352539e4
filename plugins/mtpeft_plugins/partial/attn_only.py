"""Attention-only tuning (ECCV 2022, arXiv 2203.09795): every parameter inside the attentions, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mtpeft.api import Declarations, Method, NotApplicable, Replacement, Site, WeightPart


@dataclass
class AttnOnly(Method):
    """Trains the weights and biases of the attentions (position biases inside them included)."""

    declares = Declarations(
        category="partial",
        mergeable=True,
        families="backbones with attention",
        learning_rate=1e-4,
        paper="Three Things Everyone Should Know About ViTs, ECCV 2022, arXiv 2203.09795",
    )

    at: str = "parameter"

    def common(self, sites: Sequence[Site]) -> None:
        if not any(_inside_attention(site) for site in sites):
            raise NotApplicable(f"attn-only trains attentions, and {sites[0].model.family} has none")

    def part(self, site: Site) -> WeightPart | None:
        return Replacement(site) if _inside_attention(site) else None


def _inside_attention(site: Site) -> bool:
    """``blocks.3.attn.qkv.weight``, and whatever a family calls its attention (``attn_block``, ``attn_grid``)."""
    return site.block is not None and any(word.startswith("attn") for word in site.name.split(".")[2:-1])
