"""E2VPT (ICCV 2023, arXiv 2307.13770): prompt tokens for every block, and prompts shared by its keys and values.

Every block gets ``p`` tokens of its own, whose outputs are dropped, and every attention ``K' = [P; K]``, ``V' = [P;
V]`` with the same ``P (p_kv, d)``. With ``prune`` or ``prune_segments`` the least important tokens, and of the rest
the least important segments of channels, are set to zero for good once ``prune_at`` of a stage's steps are done;
what stays goes back to its first values and is trained on (the paper trains a second run). Importance is the mean
of ``|d loss / d mask|``; all blocks of an owner compete.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtpeft.api import SHARED, Context, Count, Fraction, KeyValuePart, Method, NotApplicable, Part, Site
from mtpeft_plugins.addition.vpt_shallow import Prompt


class SharedPrefix(KeyValuePart):
    """One ``(1, p, d)`` as keys and as values, Xavier-uniform."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(1, tokens, width))
        nn.init.xavier_uniform_(self.tokens[0])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.tokens, self.tokens


class PrunedPrompt(Prompt):
    """``(1, p, d)`` under a mask ``(p, segments)``; the first values and the importance so far are kept beside it."""

    mask: Tensor
    importance: Tensor
    start: Tensor
    done: Tensor

    def __init__(self, site: Site, tokens: int, segments: int) -> None:
        super().__init__(site, tokens, carry=False)
        self.register_buffer("mask", torch.ones(tokens, segments))
        self.register_buffer("importance", torch.zeros(tokens, segments))
        self.register_buffer("start", self.tokens.detach().clone())
        self.register_buffer("done", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        return (self.split(self.tokens) * self.mask[..., None]).flatten(2)

    def split(self, tokens: Tensor) -> Tensor:
        """``(1, p, d)`` to ``(1, p, segments, d / segments)``."""
        return tokens.unflatten(2, (self.mask.shape[1], -1))

    def weigh(self) -> None:
        """Add this step's ``d loss / d mask``, which is the product of gradient and value."""
        if self.tokens.grad is not None:
            self.importance += self.split(self.tokens.grad * self.tokens).sum((0, 3)).abs()

    def rewind(self, mask: Tensor) -> None:
        self.mask.copy_(mask)
        self.tokens.copy_(self.start)
        self.tokens.grad = None
        self.done.fill_(1)

    @property
    def kept(self) -> int:
        """Numbers that are not switched off."""
        return int(self.mask.sum()) * self.tokens.shape[2] // self.mask.shape[1]


@dataclass
class E2vpt(Method):
    """Prompt tokens and key-value prompts in every block; ``prune`` and ``prune_segments`` are shares of them."""

    paper = "E2VPT, ICCV 2023, arXiv 2307.13770"
    identity_at_init = False
    families = "ViT-like backbones whose attention is global, calls its projections and mixes no positions"

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
            return Prompt(site, self.tokens, carry=False)
        if site.width % self.segments:
            raise NotApplicable(
                f"e2vpt splits the {site.width} channels of a token into {self.segments} segments",
                hint="set segments to a number that divides them",
            )
        return PrunedPrompt(site, self.tokens, self.segments)

    @torch.no_grad()
    def after_backward(self, context: Context) -> None:
        placed = context.host.parts_of(self, context.tasks)
        for owner in (SHARED, *context.tasks):
            parts = [p.part for p in placed if p.owner == owner]
            waiting = [part for part in parts if isinstance(part, PrunedPrompt) and not part.done]
            for part in waiting:
                part.weigh()
            if waiting and context.step >= int(self.prune_at * context.steps):
                self.cut(waiting)

    def cut(self, prompts: Sequence[PrunedPrompt]) -> None:
        """Switch off the least important tokens, then segments of those that stay, and rewind."""
        importance = torch.stack([part.importance for part in prompts])  # (L, p, segments)
        tokens = importance.sum(2).flatten()
        mask = torch.ones_like(tokens)
        mask[tokens.argsort()[: int(self.prune * len(tokens))]] = 0
        mask = mask.view(*importance.shape[:2], 1).expand_as(importance).flatten().clone()
        alive = mask.nonzero().flatten()
        order = importance.flatten()[alive].argsort()
        mask[alive[order[: int(self.prune_segments * len(alive))]]] = 0
        for part, own in zip(prompts, mask.view_as(importance), strict=True):
            part.rewind(own)
