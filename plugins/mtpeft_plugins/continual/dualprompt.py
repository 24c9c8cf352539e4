"""DualPrompt (ECCV 2022, arXiv 2204.04799): a general prompt for all tasks, and an expert prompt with a key for each.

In the first blocks every image attends to the general keys and values ``g``, in the next ones to those of one task,
``e_t``: ``Attention(q, [K; p_K], [V; p_V])``. Training knows the task, and adds ``pull gamma(q(x), k_t)`` to the
cross-entropy over the current classes, with ``q(x)`` the plain backbone's features and ``gamma`` the cosine distance.
Testing takes the task whose key is nearest, for each image by itself. Prefixes and keys are drawn Xavier-uniform and
uniform; the paper does not say how.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtpeft.api import (
    SHARED,
    Context,
    Count,
    Declarations,
    KeyValuePart,
    NonNegative,
    PrefixKeysValues,
    Routine,
    Site,
    Targets,
    local_logits,
)
from mtpeft_plugins.continual._retrieval import Retrieving, owned_parts


class TaskKey(nn.Module):
    """``key (d,)`` of one task."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.key = nn.Parameter(torch.empty(width).uniform_(-1, 1))

    def cosine(self, query: Tensor) -> Tensor:
        """``query (B, d)`` to ``(B,)``."""
        return F.cosine_similarity(query, self.key[None], dim=-1)


@dataclass
class Dualprompt(Retrieving):
    """General prefixes in the first blocks, and in the next ones those of the task with the nearest key."""

    declares = Declarations(
        category="continual",
        identity_at_init=False,
        inference_passes=2,
        families="ViT-like backbones whose attention is global, calls its projections and mixes no positions",
        paper="DualPrompt, ECCV 2022, arXiv 2204.04799",
    )

    scope: Literal["shared"] = "shared"
    at: str = "attn"
    general: Count = 5
    general_blocks: Count = 2
    expert: Count = 5
    expert_blocks: Count = 3
    pull: NonNegative = 1.0

    def owners(self, task: str | None, seen: Sequence[str]) -> tuple[str, ...]:
        return (SHARED, *super().owners(task, seen))

    def common(self, sites: Sequence[Site]) -> nn.Module | None:
        return None if sites[0].owner == SHARED else TaskKey(sites[0].model.block_widths[-1])

    def part(self, site: Site) -> KeyValuePart | None:
        first = 0 if site.owner == SHARED else self.general_blocks
        count = self.general_blocks if site.owner == SHARED else self.expert_blocks
        if site.block is None or not first <= site.block < first + count:
            return None
        return PrefixKeysValues(site.width, self.general if site.owner == SHARED else self.expert)

    def closeness(self, query: Tensor, parts: Sequence[Sequence[Any]]) -> Tensor:
        return torch.stack([own[0].common.cosine(query) for own in parts], 1)

    def routine(self) -> MatchedKeys:
        return MatchedKeys(self)


class MatchedKeys(Routine[Dualprompt]):
    """Pulls the key of each task to its images' features."""

    def adjust(self, context: Context, task: str, outputs: Any, targets: Targets) -> tuple[Any, Targets]:
        return local_logits(context, task, outputs), targets

    def penalty(self, context: Context) -> Tensor | None:
        terms = [self._distance(context, batch.task, batch.images) for batch in context.batch]
        return self.method.pull * torch.stack(terms).sum() if terms else None

    def _distance(self, context: Context, task: str, images: Tensor) -> Tensor:
        key = owned_parts(self.method, context.host, task)[0].common
        return (1 - key.cosine(context.host.plain(images).pooled)).mean()
