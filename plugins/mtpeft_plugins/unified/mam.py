"""MAM (ICLR 2022, arXiv 2110.04366): prefixes for every attention and a scaled adapter parallel to every MLP.

``K' = [P_K; K]``, ``V' = [P_V; V]`` and ``y' = MLP(x) + s up(ReLU(down x))`` with ``x`` the MLP's input. The paper's
adapter is wide and its prefix short, because MLPs use added capacity better. Prefixes start Xavier-uniform and are
trained directly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mtpeft.api import (
    Count,
    Declarations,
    Fraction,
    Method,
    NotApplicable,
    ParallelBottleneck,
    Part,
    Positive,
    PrefixKeysValues,
    Site,
)


@dataclass
class Mam(Method):
    """Mix-and-match adapter: prefix tuning on attentions, a scaled parallel adapter on MLPs."""

    declares = Declarations(
        category="unified",
        identity_at_init=False,
        families="ViT-like backbones whose attention is global, calls its projections and mixes no positions",
        paper="Towards a Unified View of PEFT, ICLR 2022, arXiv 2110.04366",
    )

    at: str = "attn mlp"
    tokens: Count = 30
    hidden: Count = 64
    scale: Positive = 4.0
    dropout: Fraction = 0.0

    def common(self, sites: Sequence[Site]) -> None:
        tags = {tag for site in sites for tag in site.tags}
        if not {"attention", "mlp"} <= tags:
            raise NotApplicable(f"mam needs attentions and MLPs, and {sites[0].model.family} lacks one of them")

    def part(self, site: Site) -> Part:
        if "attention" in site.tags:
            return PrefixKeysValues(site.width, self.tokens)
        return ParallelBottleneck(site.width, self.hidden, self.scale, self.dropout, norm=False)
