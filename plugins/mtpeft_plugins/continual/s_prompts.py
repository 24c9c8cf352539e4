"""S-Prompts (NeurIPS 2022, arXiv 2207.12819): prompts of its own for each task, and K-means to tell tasks apart.

S-iPrompts, the form without text: tokens ``(p, d)`` go with the image from the first block to the last, and each task
trains its own by cross-entropy alone. When a task begins, the plain backbone's features of its training images are
put into ``K`` clusters; testing takes the task with the centroid nearest to the image's plain features.

Distances are Euclidean, as K-means's own; the released code adds up absolute differences. The paper gives each domain
a classifier, and here tasks of a group share theirs: where that shall not change either, the tasks' classes differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtpeft.api import Context, Count, Declarations, PromptTokens, Routine, Site, Targets, TokenPart, local_logits
from mtpeft_plugins.continual._retrieval import Retrieving, owned_parts


class Centroids(nn.Module):
    """``points (K, d)`` of one task; infinitely far away until it begins."""

    points: Tensor

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.register_buffer("points", torch.full((count, width), torch.inf))

    def closeness(self, query: Tensor) -> Tensor:
        """``query (B, d)`` to minus the squared distance of the nearest, ``(B,)``."""
        return -(query[:, None] - self.points).square().sum(-1).amin(1)


@dataclass
class SPrompts(Retrieving):
    """Independent prompts for each task; an image takes those of the task with the nearest centroid."""

    declares = Declarations(
        category="continual",
        identity_at_init=False,
        inference_passes=2,
        families="ViT-like backbones without relative positions; with rotary ones prompts are not rotated",
        learning_rate=1e-2,
        paper="S-Prompts Learning with Pre-trained Transformers, NeurIPS 2022, arXiv 2207.12819",
    )

    scope: Literal["task"] = "task"
    at: str = "blocks.0.tokens"
    tokens: Count = 10
    clusters: Count = 5

    def common(self, sites: Sequence[Site]) -> nn.Module:
        return Centroids(self.clusters, sites[0].model.block_widths[-1])

    def part(self, site: Site) -> TokenPart:
        return PromptTokens(site, self.tokens, carry=True)

    def closeness(self, query: Tensor, parts: Sequence[Sequence[Any]]) -> Tensor:
        return torch.stack([own[0].common.closeness(query) for own in parts], 1)

    def routine(self) -> Clusters:
        return Clusters(self)


class Clusters(Routine[SPrompts]):
    """Clusters the plain features of each new task."""

    @torch.no_grad()
    def calibrate(self, context: Context) -> None:
        for task in context.tasks:
            batches = context.batches(train=False, tasks=[task])
            queries = torch.cat([context.host.plain(images).pooled.float() for _, images, _ in batches])
            points = owned_parts(self.method, context.host, task)[0].common.points
            points.copy_(centroids(queries, len(points), context.seed))

    def adjust(self, context: Context, task: str, outputs: Any, targets: Targets) -> tuple[Any, Targets]:
        return local_logits(context, task, outputs), targets


def centroids(points: Tensor, count: int, seed: int) -> Tensor:
    """K-means of ``points (N, d)``: ``(count, d)``, where there are fewer points with some of them again."""
    from sklearn.cluster import KMeans

    count_found = min(count, len(points.unique(dim=0)))
    found = KMeans(count_found, n_init=1, random_state=seed).fit(points.cpu().numpy()).cluster_centers_
    return torch.from_numpy(found)[torch.arange(count) % count_found].to(points)
