"""MAM (ICLR 2022, arXiv 2110.04366): prefixes for every attention and a scaled adapter parallel to every MLP.

``K' = [P_K; K]``, ``V' = [P_V; V]`` and ``y' = MLP(x) + s up(ReLU(down x))`` with ``x`` the MLP's input. The paper's
adapter is wide and its prefix short, because MLPs use added capacity better. Prefixes start Xavier-uniform and are
trained directly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mtpeft.api import Method, NotApplicable, Part, Site
from mtpeft_plugins.addition.adaptformer import ParallelBottleneck
from mtpeft_plugins.addition.prefix import Prefixes


@dataclass
class Mam(Method):
    """Mix-and-match adapter: prefix tuning on attentions, a scaled parallel adapter on MLPs."""

    paper = "Towards a Unified View of PEFT, ICLR 2022, arXiv 2110.04366"
    identity_at_init = False
    families = "ViT-like backbones whose attention is global, calls its projections and mixes no positions"

    at: str = "attn mlp"
    tokens: int = 30
    hidden: int = 64
    scale: float = 4.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        self.check(self.tokens >= 1, f"tokens is {self.tokens}", "give at least one prefix token")
        self.check(self.hidden >= 1, f"hidden is {self.hidden}", "a bottleneck is at least 1 wide")
        self.check(0 <= self.dropout < 1, f"dropout is {self.dropout}", "dropout is at least 0 and below 1")

    def common(self, sites: Sequence[Site]) -> None:
        tags = {tag for site in sites for tag in site.tags}
        if not {"attention", "mlp"} <= tags:
            raise NotApplicable(f"mam needs attentions and MLPs, and {sites[0].model.family} lacks one of them")

    def part(self, site: Site) -> Part:
        if "attention" in site.tags:
            return Prefixes(site.width, self.tokens)
        return ParallelBottleneck(site.width, self.hidden, self.scale, self.dropout, norm=False)
