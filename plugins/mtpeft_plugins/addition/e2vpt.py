"""E2VPT (ICCV 2023, arXiv 2307.13770): prompt tokens for every block, and prompts shared by its keys and values.

Every block gets ``p`` tokens of its own, whose outputs are dropped, and every attention ``K' = [P; K]``, ``V' = [P;
V]`` with the same ``P (p_kv, d)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtpeft.api import KeyValuePart, Method, Part, Site
from mtpeft_plugins.addition.vpt_shallow import Prompt


class SharedPrefix(KeyValuePart):
    """One ``(1, p, d)`` as keys and as values, Xavier-uniform."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(1, tokens, width))
        nn.init.xavier_uniform_(self.tokens[0])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.tokens, self.tokens


@dataclass
class E2vpt(Method):
    """Prompt tokens and key-value prompts in every block."""

    paper = "E2VPT, ICCV 2023, arXiv 2307.13770"
    identity_at_init = False
    families = "ViT-like backbones whose attention is global, calls its projections and mixes no positions"

    at: str = "tokens attn"
    tokens: int = 5
    key_values: int = 5

    def __post_init__(self) -> None:
        self.check(self.tokens >= 1, f"tokens is {self.tokens}", "give at least one prompt token")
        self.check(self.key_values >= 1, f"key_values is {self.key_values}", "give at least one key-value prompt")

    def part(self, site: Site) -> Part:
        if "tokens" in site.tags:
            return Prompt(site, self.tokens, carry=False)
        return SharedPrefix(site.width, self.key_values)
