"""Prompts: learned tokens for a block, and learned keys and values for an attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mtpeft.peft.parts import KeyValuePart, TokenPart
from mtpeft.peft.sites import Site


def drawn_prompts(site: Site, tokens: int, width: int) -> nn.Parameter:
    """Draws ``(1, p, d)`` as VPT does (arXiv 2203.12119), uniform in ``+-sqrt(6 / (patch pixels x 3 + d))``."""
    bound = math.sqrt(6 / (site.model.patch_inputs + width))
    return nn.Parameter(torch.empty(1, tokens, width).uniform_(-bound, bound))


class PromptTokens(TokenPart):
    """``tokens (1, p, d)``.

    Args:
        carry: goes on from one block to the next (VPT-Shallow); else the block's outputs for them are dropped.
    """

    def __init__(self, site: Site, tokens: int, carry: bool) -> None:
        super().__init__()
        self.tokens, self.carry = drawn_prompts(site, tokens, site.width), carry

    def forward(self, x: Tensor) -> Tensor:
        return self.tokens


class PrefixKeysValues(KeyValuePart):
    """Keys and values, each ``(1, p, d)`` and Xavier-uniform (Prefix-Tuning, ACL 2021, arXiv 2101.00190)."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.keys, self.values = (nn.Parameter(torch.empty(1, tokens, width)) for _ in "kv")
        for prefix in (self.keys, self.values):
            nn.init.xavier_uniform_(prefix[0])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.keys, self.values
