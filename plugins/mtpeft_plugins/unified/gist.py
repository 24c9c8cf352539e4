"""GIST (arXiv 2312.07255): one more token that gathers a task's knowledge, beside any other method.

The Gist token ``g (d,)`` enters the first block behind the prefix tokens and runs through all of them. In training the
head reads it as it reads the pooled vector, and both readings are drawn together, ``weight (KL(p || q) + KL(q || p))``
with ``p = softmax(head(pooled) / T)`` and ``q = softmax(head(g_L) / T)``. At inference the pooled vector alone is read.
Compose it: ``--method adapter-pfeiffer+gist``. Tasks whose head gives no class distribution train the token without the
divergence. Temperature, weight and the absence of a loss on the reading alone are ours, written from the paper's
abstract.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mtpeft.api import (
    Context,
    Declarations,
    Features,
    Method,
    NonNegative,
    NotApplicable,
    Part,
    Positive,
    Routine,
    Segment,
    SidePart,
    Site,
    TokenPart,
    drawn_prompts,
)


class Relay(TokenPart):
    """Hands what the block before made of the token to the next."""

    def forward(self, x: Tensor) -> Tensor:
        return self.scratch["gist"]

    def returned(self, tokens: Tensor) -> None:
        self.scratch["gist"] = tokens


class First(Relay):
    """The token, ``(1, 1, d)``, uniform as a prompt of VPT."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.token = drawn_prompts(site, 1, site.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.token


class Readings(nn.Module):
    """What an owner's last batch gave: segment -> its task, the features and the token's reading."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[int, tuple[str | None, Features, Tensor]] = {}


class Reading(SidePart):
    """Keeps the token, normalised as the backbone's last tokens are, for the penalty; the features stay as they are."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        found = [site.model.modules.get(name) for name in ("norm", "fc_norm")]
        self.__dict__["norms"] = [norm for norm in found if norm is not None]

    def forward(self, features: Features) -> Features:
        gist = self.scratch["gist"][:, 0]
        for norm in self.__dict__["norms"]:
            gist = norm.forward(gist)
        if self.training and torch.is_grad_enabled():
            first, route = self.pass_state.scratch_key[0], self.pass_state.current.route
            whole = len(features) == route.size
            segments = route.segments if whole else (Segment(self.pass_state.task, 0, len(features)),)
            for index, segment in enumerate(segments, first):
                rows = slice(segment.start, segment.stop)
                self.common.of[index] = (segment.task, features[rows], gist[rows])
        return features


def both_ways(first: Tensor, second: Tensor) -> Tensor:
    """``KL(p || q) + KL(q || p)`` of logits ``(B, K)``, a mean over samples."""
    p, q = first.log_softmax(1), second.log_softmax(1)
    return ((p.exp() - q.exp()) * (p - q)).sum(1).mean()


@dataclass
class Gist(Method):
    """A token that the head reads in training, drawn together with the pooled vector."""

    declares = Declarations(
        category="unified",
        identity_at_init=False,
        families="ViT-like backbones without relative positions, with heads that classify images",
        paper="GIST: Improving PEFT via Knowledge Interaction, arXiv 2312.07255",
    )

    at: str = "tokens features"
    weight: NonNegative = 0.5
    temperature: Positive = 3.0

    def common(self, sites: Sequence[Site]) -> nn.Module:
        model, blocks = sites[0].model, {site.block for site in sites if "tokens" in site.tags}
        if not blocks:
            raise NotApplicable(f"gist adds a token, and the blocks of {model.family} take none")
        whole = len(blocks) == len(model.blocks) and any("features" in site.tags for site in sites)
        self.require(
            whole, "gist takes its token through every block to the features", "leave at and blocks as they are"
        )
        return Readings()

    def part(self, site: Site) -> Part:
        if "features" in site.tags:
            return Reading(site)
        return First(site) if site.block == 0 else Relay()

    def routine(self) -> DrawTogether:
        return DrawTogether(self)


class DrawTogether(Routine[Gist]):
    """The divergence of both readings as a penalty."""

    def penalty(self, context: Context) -> Tensor | None:
        """The divergence on the last batch, each task's share by its number of samples."""
        shared_modules = {id(p.part.common): p.part.common for p in context.parts(self.method)}
        kept = [reading for common in shared_modules.values() for reading in common.of.values()]
        for common in shared_modules.values():
            common.of.clear()
        terms, size = [], sum(len(features) for _, features, _ in kept)
        for task, features, gist in kept:
            head = context.host.head_of(task)
            logits = head(features)
            if isinstance(logits, Tensor) and logits.ndim == 2:
                read = head(replace(features, pooled=gist))
                apart = both_ways(logits / self.method.temperature, read / self.method.temperature)
                terms.append(len(features) / size * apart)
        return self.method.weight * torch.stack(terms).sum() if terms else None
