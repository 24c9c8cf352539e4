"""VPT-Shallow (ECCV 2022, arXiv 2203.12119): learned tokens inserted at the first block and carried to the end."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtpeft.api import Count, Method, Site, TokenPart


def drawn_prompts(site: Site, tokens: int, width: int) -> nn.Parameter:
    """``(1, p, d)``, uniform in ``+-sqrt(6 / (patch pixels x 3 + d))``."""
    bound = math.sqrt(6 / (site.model.patch_inputs + width))
    return nn.Parameter(torch.empty(1, tokens, width).uniform_(-bound, bound))


class Prompt(TokenPart):
    """``tokens (1, p, d)``."""

    def __init__(self, site: Site, tokens: int, carry: bool) -> None:
        super().__init__()
        self.tokens, self.carry = drawn_prompts(site, tokens, site.width), carry

    def forward(self, x: Tensor) -> Tensor:
        return self.tokens


@dataclass
class VptShallow(Method):
    """Prompt tokens inserted before the first block."""

    paper = "Visual Prompt Tuning, ECCV 2022, arXiv 2203.12119"
    identity_at_init = False
    families = "ViT-like backbones without relative positions; with rotary ones prompts are not rotated"

    at: str = "blocks.0.tokens"
    tokens: Count = 50

    def part(self, site: Site) -> TokenPart:
        return Prompt(site, self.tokens, carry=True)
