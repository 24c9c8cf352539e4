"""VPT-Shallow (ECCV 2022, arXiv 2203.12119): learned tokens inserted at the first block and carried to the end."""

from __future__ import annotations

from dataclasses import dataclass

from mtpeft.api import Count, Declarations, Method, PromptTokens, Site, TokenPart


@dataclass
class VptShallow(Method):
    """Prompt tokens inserted before the first block."""

    declares = Declarations(
        category="addition",
        identity_at_init=False,
        families="ViT-like backbones without relative positions; with rotary ones prompts are not rotated",
        paper="Visual Prompt Tuning, ECCV 2022, arXiv 2203.12119",
    )

    at: str = "blocks.0.tokens"
    tokens: Count = 50

    def part(self, site: Site) -> TokenPart:
        return PromptTokens(site, self.tokens, carry=True)
