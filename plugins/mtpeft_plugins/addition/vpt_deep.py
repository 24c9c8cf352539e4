"""VPT-Deep (ECCV 2022, arXiv 2203.12119): fresh learned tokens at every block; their outputs are dropped."""

from __future__ import annotations

from dataclasses import dataclass

from mtpeft.api import Count, Declarations, Method, PromptTokens, Site, TokenPart


@dataclass
class VptDeep(Method):
    """Prompt tokens of their own for every block."""

    declares = Declarations(
        category="addition",
        identity_at_init=False,
        families="ViT-like backbones without relative positions; with rotary ones prompts are not rotated",
        paper="Visual Prompt Tuning, ECCV 2022, arXiv 2203.12119",
    )

    at: str = "tokens"
    tokens: Count = 10

    def part(self, site: Site) -> TokenPart:
        return PromptTokens(site, self.tokens, carry=False)
