"""Prefix tuning (ACL 2021, arXiv 2101.00190): learned keys and values before those of every attention.

``K' = [P_K; K]``, ``V' = [P_V; V]``; attention does not depend on their order, and here they come behind. The
prefixes are trained directly (the paper trains them through an MLP), Xavier-uniform at the start.
"""

from __future__ import annotations

from dataclasses import dataclass

from mtpeft.api import Count, Declarations, KeyValuePart, Method, PrefixKeysValues, Site


@dataclass
class Prefix(Method):
    """Learned keys and values for every attention."""

    declares = Declarations(
        category="addition",
        identity_at_init=False,
        families="ViT-like backbones whose attention is global, calls its projections and mixes no positions",
        paper="Prefix-Tuning, ACL 2021, arXiv 2101.00190",
    )

    at: str = "attn"
    tokens: Count = 10

    def part(self, site: Site) -> KeyValuePart:
        return PrefixKeysValues(site.width, self.tokens)
