"""Ladder side-tuning (NeurIPS 2022, arXiv 2206.06522): a narrow transformer beside a backbone without gradient.

``s_l = Block_l(mu_l s_{l-1} + (1 - mu_l) down_l(h_l))`` with ``h_l`` the output of block ``l``, ``mu_l =
sigmoid(a_l / T)``, from ``s_0 = 0`` (the released code starts from the narrowed embedding). The side stream's output is
added to the backbone's features, pooled as they are, through ``up``, which starts at zero (the paper reads the side
stream alone and prunes its weights from the backbone).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mtpeft.api import Count, Declarations, Features, Method, NotApplicable, SidePart, Site, zeros


class Ladder(SidePart):
    """A side block for each block of the backbone, ``width / reduction`` wide, and at least 8."""

    temperature = 0.1

    def __init__(self, site: Site, reduction: int) -> None:
        super().__init__()
        wide = site.model.block_widths[-1]
        narrow = max(wide // reduction, 8)
        self.down = nn.ModuleList(nn.Linear(width, narrow) for width in site.model.block_widths)
        self.gates = zeros(len(self.down))
        heads = next(h for h in (narrow // 32, 1) if h and narrow % h == 0)
        self.blocks = nn.ModuleList(Block(narrow, heads, qkv_bias=True) for _ in self.down)
        self.norm, self.up = nn.LayerNorm(narrow), nn.Linear(narrow, wide)
        self.reads_token = getattr(site.module, "global_pool", "") == "token"
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, features: Features) -> Features:
        side: Tensor | float = 0.0
        for tap, down, gate, block in zip(features.taps, self.down, self.gates, self.blocks, strict=True):
            keep = torch.sigmoid(gate / self.temperature)
            side = block(keep * side + (1 - keep) * down(tap))
        return self._added(features, self.up(self.norm(side)))

    def _added(self, features: Features, change: Tensor) -> Features:
        """``change (B, P + H W, C)`` added to the prefix tokens, the map and the pooled vector."""
        prefix = 0 if features.prefix is None else features.prefix.shape[1]
        grid = change[:, prefix:].transpose(1, 2).reshape_as(features.maps[-1])
        pooled = change[:, 0] if self.reads_token else change[:, prefix:].mean(1)
        return replace(
            features,
            pooled=features.pooled + pooled,
            maps=(features.maps[-1] + grid,),
            prefix=None if features.prefix is None else features.prefix + change[:, :prefix],
        )


@dataclass
class Lst(Method):
    """A ladder of narrow side blocks on the frozen backbone's block outputs."""

    declares = Declarations(
        category="addition",
        families="ViT-like backbones: one sequence of tokens through all blocks",
        paper="LST, NeurIPS 2022, arXiv 2206.06522",
    )

    at: str = "features"
    reduction: Count = 8

    def part(self, site: Site) -> SidePart:
        if not site.model.tokens:
            family = site.model.family
            raise NotApplicable(f"lst runs beside one sequence of tokens, and {family} changes its grid between blocks")
        return Ladder(site, self.reduction)
