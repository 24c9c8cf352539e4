"""VQT, visual query tuning (CVPR 2023, arXiv 2212.03220): learned queries that sum up each block's tokens for the head.

In block ``l`` prompts ``P_l (p, d)`` ask, and the block's tokens answer as they do among themselves: ``Z = P +
Attention(q(LN1 P), K, V)``, ``Z' = Z + MLP(LN2 Z)`` with the block's frozen weights. No token sees a prompt, so the
backbone's features stay bit for bit and need no gradient. The head sees the pooled vector and all ``L p`` outputs,
joined (the paper then prunes the head's inputs, which is left to the head here); heads that read maps alone, as those
for detection and segmentation do, get nothing from it. Beside other methods the keys and values are the adapted ones,
and the prompts' own way through projections and MLP is the frozen one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention, Block
from torch import Tensor

from mtpeft.api import (
    SHARED,
    Count,
    Declarations,
    Features,
    FeaturesInfo,
    Method,
    NotApplicable,
    OutputPart,
    Part,
    SidePart,
    Site,
    drawn_prompts,
)


class Queries(OutputPart):
    """``(1, p, d)``, drawn like VPT's prompts; reads the block's keys and values and changes nothing."""

    def __init__(self, site: Site, tokens: int) -> None:
        super().__init__()
        self.tokens = drawn_prompts(site, tokens, site.in_features)
        # frozen, and not the part's own: neither counted nor saved with it
        self.__dict__["block"] = site.model.modules[site.block_path]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.scratch["summaries"] = (*self.scratch.get("summaries", ()), self.summary(y))
        return y

    def summary(self, projected: Tensor) -> Tensor:
        """The block's output ``(B, p, d)`` for the prompts, given what ``qkv`` makes of all tokens, ``(B, N, 3 d)``."""
        block, attention = self.__dict__["block"], self.__dict__["block"].attn
        own = attention.qkv.forward(block.norm1.forward(self.tokens))
        query, _, _ = heads_of(own, attention)
        _, key, value = heads_of(projected, attention)
        read = F.scaled_dot_product_attention(query.expand(len(key), -1, -1, -1), key, value)
        read = attention.norm.forward(read.transpose(1, 2).flatten(2))
        z = self.tokens + block.ls1.forward(attention.proj.forward(read))
        hidden = block.mlp.act.forward(block.mlp.fc1.forward(block.norm2.forward(z)))
        return z + block.ls2.forward(block.mlp.fc2.forward(block.mlp.norm.forward(hidden)))


def heads_of(projected: Tensor, attention: Attention) -> tuple[Tensor, Tensor, Tensor]:
    """``(B, N, 3 d)`` to queries, keys and values, each ``(B, heads, N, d / heads)``, normalised as the model does."""
    query, key, value = projected.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return attention.q_norm.forward(query), attention.k_norm.forward(key), value


class Joined(SidePart):
    """The summaries of all blocks behind the pooled vector."""

    def forward(self, features: Features) -> Features:
        summaries = [z.flatten(1) for z in self.scratch["summaries"]]
        return replace(features, pooled=torch.cat([features.pooled, *summaries], 1))


class Blank(SidePart):
    """Zeros where summaries would be, for samples whose task is not known."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, features: Features) -> Features:
        return replace(features, pooled=F.pad(features.pooled, (0, self.width)))


@dataclass
class Vqt(Method):
    """Learned queries to every block, for the head alone."""

    # the head sees more than the backbone gives, though all of that is unchanged
    declares = Declarations(
        category="addition",
        identity_at_init=False,
        families="plain ViTs (timm's own block) without rotary or relative positions",
        paper="Visual Query Tuning, CVPR 2023, arXiv 2212.03220",
    )

    at: str = "attn.qkv features"
    tokens: Count = 10

    def common(self, sites: Sequence[Site]) -> None:
        if all("features" in site.tags for site in sites):
            raise NotApplicable("vqt asks the attention of plain ViT blocks, and this backbone has none")
        read = any("features" in site.tags for site in sites)
        self.require(read, "vqt's queries are read at the features, which at leaves out", "keep features in at")
        self.added = sum(self.tokens * site.in_features for site in sites if site.block is not None)

    def owners(self, task: str | None, seen: Sequence[str]) -> tuple[str, ...]:
        """With queries for each task, samples of an unknown one get features of the same width all the same."""
        return super().owners(task, seen) or (SHARED,)

    def features_info(self, info: FeaturesInfo, seen: Sequence[str]) -> FeaturesInfo:
        return replace(info, pooled=info.pooled + getattr(self, "added", 0))

    def part(self, site: Site) -> Part | None:
        if site.owner == SHARED and self.scope == "task":
            return Blank(self.added) if "features" in site.tags else None
        if "features" in site.tags:
            return Joined()
        fused = "slice" not in site.tags and site.path.endswith(".attn.qkv")
        self.require(fused, f"vqt's queries ask at attn.qkv, not at {site.name}", 'use at = "attn.qkv features"')
        block = site.model.modules[site.block_path]
        if type(block) is not Block or type(block.attn) is not Attention or block.attn.gate is not None:
            raise NotApplicable(f"vqt asks the attention of a plain ViT block, and {site.model.family} has another")
        return Queries(site, self.tokens)
