"""E2VPT (ICCV 2023, arXiv 2307.13770): prompt tokens for every block, and prompts shared by its keys and values.

Every block gets ``p`` tokens of its own, whose outputs are dropped, and every attention ``K' = [P; K]``, ``V' = [P;
V]`` with the same ``P (p_kv, d)``. With ``prune`` or ``prune_segments`` the least important tokens, and of the rest
the least important segments of channels, are zero for good once ``prune_at`` of a stage's steps are done; what stays,
which alone counts and is saved, goes back to its first values and is trained on (the paper trains a second run).
Importance is the mean of ``|d loss / d mask|``; all blocks of an owner compete.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtpeft.api import (
    Context,
    Count,
    Declarations,
    Fraction,
    KeyValuePart,
    Method,
    NotApplicable,
    Part,
    PromptTokens,
    Routine,
    Site,
    TokenPart,
    drawn_prompts,
    zeros,
)


class SharedPrefix(KeyValuePart):
    """One ``(1, p, d)`` as keys and as values, Xavier-uniform."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(1, tokens, width))
        nn.init.xavier_uniform_(self.tokens[0])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.tokens, self.tokens


class PrunedPrompt(TokenPart):
    """``p`` tokens of which some segments are zero; ``tokens (kept, d / segments)`` are the others.

    Until some are cut, the first values and the importance so far are kept beside them.
    """

    mask: Tensor
    importance: Tensor
    start: Tensor

    def __init__(self, site: Site, tokens: int, segments: int) -> None:
        super().__init__()
        start = drawn_prompts(site, tokens, site.width).detach().view(tokens * segments, -1)
        self.tokens = nn.Parameter(start.clone())
        self.register_buffer("mask", torch.ones(tokens, segments, dtype=torch.bool))
        self.register_buffer("importance", torch.zeros(tokens, segments))
        self.register_buffer("start", start)

    @property
    def cut(self) -> bool:
        return len(self.start) == 0

    def forward(self, x: Tensor) -> Tensor:
        whole = self.tokens.new_zeros(*self.mask.shape, self.tokens.shape[1])
        return whole.masked_scatter(self.mask[..., None], self.tokens).flatten(1)[None]

    def weigh(self) -> None:
        """Add this step's ``d loss / d mask``, which is the product of gradient and value."""
        if self.tokens.grad is not None:
            self.importance += (self.tokens.grad * self.tokens).sum(1).abs().view_as(self.mask)

    def keep(self, mask: Tensor) -> None:
        """Go back to the first values of what ``mask`` keeps, and drop the rest."""
        self.mask.copy_(mask)
        self.tokens = nn.Parameter(self.start[mask.flatten()])
        self.start, self.importance = self.start[:0], self.importance[:0]

    def fit(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.tokens = zeros(*shapes["tokens"])
        self.start, self.importance = (torch.zeros(shapes[name]) for name in ("start", "importance"))


@dataclass
class E2vpt(Method):
    """Prompt tokens and key-value prompts in every block; ``prune`` and ``prune_segments`` are shares of them."""

    declares = Declarations(
        category="addition",
        identity_at_init=False,
        families="ViT-like backbones whose attention is global, calls its projections and mixes no positions",
        paper="E2VPT, ICCV 2023, arXiv 2307.13770",
    )

    at: str = "tokens attn"
    tokens: Count = 5
    key_values: Count = 5
    prune: Fraction = 0.0
    prune_segments: Fraction = 0.0
    segments: Count = 8
    prune_at: Fraction = 0.5

    def part(self, site: Site) -> Part:
        if "tokens" not in site.tags:
            return SharedPrefix(site.width, self.key_values)
        if not self.prune and not self.prune_segments:
            return PromptTokens(site, self.tokens, carry=False)
        if site.width % self.segments:
            raise NotApplicable(
                f"e2vpt splits the {site.width} channels of a token into {self.segments} segments",
                hint="set segments to a number that divides them",
            )
        return PrunedPrompt(site, self.tokens, self.segments)

    def routine(self) -> Pruning | None:
        return Pruning(self) if self.prune or self.prune_segments else None


class Pruning(Routine[E2vpt]):
    """Weighs prompts after each backward pass, and cuts them once in a stage."""

    @torch.no_grad()
    def after_backward(self, context: Context) -> None:
        for prompts in self.uncut(context):
            for prompt in prompts:
                prompt.weigh()

    def begin_update(self, context: Context) -> bool:
        return context.step >= self.method.prune_at * context.steps and self.cut(context)

    def end_stage(self, context: Context) -> None:
        self.cut(context)

    def uncut(self, context: Context) -> Iterator[list[PrunedPrompt]]:
        """The prompts of each owner that trains and was not cut yet."""
        owned: dict[str, list[PrunedPrompt]] = {}
        for placed in context.parts(self.method):
            if isinstance(placed.part, PrunedPrompt) and not placed.part.cut:
                owned.setdefault(placed.owner, []).append(placed.part)
        yield from owned.values()

    def cut(self, context: Context) -> bool:
        """Cut the prompts of each owner that were weighed; whether there were any."""
        weighed = [prompts for prompts in self.uncut(context) if any(bool(p.importance.any()) for p in prompts)]
        for prompts in weighed:
            importance = torch.stack([prompt.importance for prompt in prompts])  # (L, p, segments)
            for prompt, mask in zip(prompts, self.survivors(importance), strict=True):
                prompt.keep(mask)
        return bool(weighed)

    def survivors(self, importance: Tensor) -> Tensor:
        """What stays, ``(L, p, segments)``: without the least important tokens, then segments of the others."""
        tokens, mask = importance.sum(2).flatten(), torch.ones_like(importance, dtype=torch.bool)
        mask.flatten(0, 1)[tokens.argsort()[: int(self.method.prune * len(tokens))]] = False
        alive = mask.flatten().nonzero().flatten()
        order = importance.flatten()[alive].argsort()
        mask.view(-1)[alive[order[: int(self.method.prune_segments * len(alive))]]] = False
        return mask
