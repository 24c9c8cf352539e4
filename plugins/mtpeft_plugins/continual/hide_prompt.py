"""HiDe-Prompt (NeurIPS 2023, arXiv 2310.07234): within-task prediction, task inference and alignment, each by itself.

- Within a task, the attentions of the first blocks get further keys and values ``momentum sum_{i<t} e_i + (1 -
  momentum) e_t``, trained by cross-entropy over the current classes and a contrast with those met before:
  ``contrast mean_h log(s(h, M) / (s(h, H) + s(h, M)))`` with ``s(h, X) = sum_x exp(cos(h, x) / temperature)``, ``H``
  the batch's features and ``M`` the earlier classes' means.
- Which task an image is of is inferred from its plain features, from class means and covariances of these.
- Once a stage has ended, the head is trained further on draws from a Gaussian for each class met, of prompted features.

Deviations: the head that infers the task is not trained on draws from the Gaussians of plain features, but is their
Bayes classifier with one covariance for all, which training would approach; it needs no rows of its own and is there
from the first update on. Features are normalised in the contrast, which has no lower bound otherwise. A new prompt is
not started from the last one, as the released code does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mtpeft.api import (
    Context,
    Count,
    Declarations,
    Features,
    FeaturesInfo,
    Fraction,
    NonNegative,
    Positive,
    PrefixKeysValues,
    Routine,
    Site,
    Targets,
    Whole,
    local_logits,
)
from mtpeft_plugins.continual._retrieval import Retrieving, owned_parts

_SHRINK = 1e-2
"""Of the mean variance, added to the covariance that is inverted."""
_JITTER = 1e-4
"""Added to the variances of a class, of which fewer samples may be there than features."""


class TaskPrefix(PrefixKeysValues):
    """``e_t``, with ``earlier (2, 1, p, d)``: the part of earlier tasks in its keys and values, already weighted."""

    earlier: Tensor

    def __init__(self, width: int, tokens: int, momentum: float) -> None:
        super().__init__(width, tokens)
        self.momentum = momentum
        self.register_buffer("earlier", torch.zeros(2, 1, tokens, width))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.earlier + (1 - self.momentum) * torch.stack([self.keys, self.values])
        return keys, values


class DescribedPrefix(TaskPrefix):
    """The first prefix of a task, which also keeps what is known of its ``C`` classes; nothing until it begins.

    Attributes:
        rows: of the head, ``(C,)``.
        plain_means, scatter, count: means ``(C, d)`` of the plain features, and the sum of the products ``(d, d)`` of
            their ``(1,)`` deviations from these.
        means, covariances: of the prompted features, ``(C, d)`` and ``(C, d, d)``.
    """

    rows: Tensor
    plain_means: Tensor
    scatter: Tensor
    count: Tensor
    means: Tensor
    covariances: Tensor

    def __init__(self, width: int, tokens: int, momentum: float, features: int) -> None:
        super().__init__(width, tokens, momentum)
        self.register_buffer("rows", torch.zeros(0, dtype=torch.long))
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("scatter", torch.zeros(features, features))
        for name in ("plain_means", "means"):
            self.register_buffer(name, torch.zeros(0, features))
        self.register_buffer("covariances", torch.zeros(0, features, features))

    def fit(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        for name in ("rows", "plain_means", "means", "covariances"):
            self.register_buffer(name, getattr(self, name).new_zeros(shapes[name]))

    def take_plain(self, features: Tensor, labels: Tensor) -> None:
        """Describe the classes ``labels (N,)``, rows of the head, by the plain ``features (N, d)``."""
        self.rows = labels.unique()
        self.plain_means = torch.stack([features[labels == row].mean(0) for row in self.rows])
        deviations = features - self.plain_means[torch.searchsorted(self.rows, labels)]
        self.scatter, self.count = deviations.T @ deviations, features.new_tensor([float(len(features))])

    def take_prompted(self, features: Tensor, labels: Tensor) -> None:
        """The same by the prompted features."""
        groups = [features[labels == row] for row in self.rows]
        self.means = torch.stack([group.mean(0) for group in groups])
        self.covariances = torch.stack([torch.cov(group.T, correction=0) for group in groups])


@dataclass
class HidePrompt(Retrieving):
    """Prefixes for each task, the task inferred from plain features, and a head aligned on Gaussians of all classes."""

    declares = Declarations(
        category="continual",
        identity_at_init=False,
        inference_passes=2,
        accepts=("cls",),
        families="ViT-like backbones whose attention is global, calls its projections and mixes no positions",
        learning_rate=2.8e-3,
        paper="Hierarchical Decomposition of Prompt-Based Continual Learning, NeurIPS 2023, arXiv 2310.07234",
    )

    scope: Literal["task"] = "task"
    at: str = "attn"
    tokens: Count = 5
    prompted_blocks: Count = 5
    momentum: Fraction = 0.01
    contrast: NonNegative = 0.1
    temperature: Positive = 0.8
    align_epochs: Whole = 30
    align_rate: Positive = 5e-3
    align_samples: Count = 256

    def part(self, site: Site) -> TaskPrefix | None:
        if site.block is None or site.block >= self.prompted_blocks:
            return None
        settings = site.width, self.tokens, self.momentum
        return TaskPrefix(*settings) if site.block else DescribedPrefix(*settings, site.model.block_widths[-1])

    def closeness(self, query: Tensor, parts: Sequence[Sequence[Any]]) -> Tensor:
        """The largest log posterior of each task's classes, but for a constant of the image."""
        described: list[DescribedPrefix] = [own[0] for own in parts]
        count = torch.stack([part.count for part in described]).sum().clamp(min=1)
        covariance = torch.stack([part.scatter for part in described]).sum(0) / count
        covariance.diagonal().add_(_SHRINK * covariance.diagonal().mean() + _JITTER * _SHRINK)
        closeness = query.new_full((len(query), len(described)), -torch.inf)
        for index, part in enumerate(described):
            if len(part.rows):
                weights = torch.linalg.solve(covariance, part.plain_means.T)  # (d, C)
                bias = (part.plain_means.T * weights).sum(0) / 2
                closeness[:, index] = (query.to(weights) @ weights - bias).amax(1)
        return closeness

    def routine(self) -> Hierarchy:
        return Hierarchy(self)


class Hierarchy(Routine[HidePrompt]):
    """Describes classes, contrasts new ones with old ones, and aligns the head."""

    @torch.no_grad()
    def calibrate(self, context: Context) -> None:
        for task in context.tasks:
            self._described(context, task).take_plain(*self._features(context, task, prompted=False))

    @torch.no_grad()
    def begin_stage(self, context: Context) -> None:
        earlier = [self._parts(context, task) for task in context.seen if task not in context.tasks]
        for task in context.tasks:
            for index, part in enumerate(self._parts(context, task)):
                old = [torch.stack([own[index].keys, own[index].values]) for own in earlier]
                part.earlier = self.method.momentum * sum(old, torch.zeros_like(part.earlier))

    def adjust(self, context: Context, task: str, outputs: Any, targets: Targets) -> tuple[Any, Targets]:
        return local_logits(context, task, outputs), targets

    def penalty(self, context: Context) -> Tensor | None:
        terms = []
        for batch in context.batch:
            earlier = [part.means for name, part in self._group(context, batch.task) if name not in context.tasks]
            if earlier:
                terms.append(contrast(batch.features.pooled, torch.cat(earlier), self.method.temperature))
        return self.method.contrast * torch.stack(terms).sum() if terms else None

    def end_stage(self, context: Context) -> None:
        with torch.no_grad():
            for task in context.tasks:
                self._described(context, task).take_prompted(*self._features(context, task, prompted=True))
        for head in dict.fromkeys(context.host.head_names[task] for task in context.tasks):
            task = next(task for task in context.tasks if context.host.head_names[task] == head)
            classes = [part for _, part in self._group(context, task)]
            if len(classes) > 1:
                self._align(context, context.host.head_of(task), classes)

    def _align(self, context: Context, head: Any, classes: Sequence[DescribedPrefix]) -> None:
        """Train ``head`` by cross-entropy on draws from the Gaussian of each class."""
        method, trained = self.method, [parameter for parameter in head.parameters() if parameter.requires_grad]
        generator = torch.Generator().manual_seed(1000 * context.seed + context.stage)
        if not trained or not method.align_epochs:
            return
        optimizer = torch.optim.SGD(trained, method.align_rate, momentum=0.9, weight_decay=5e-4)
        rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, method.align_epochs)
        rows = torch.cat([part.rows for part in classes]).repeat_interleave(method.align_samples)
        for _ in range(method.align_epochs):
            drawn = torch.cat([draws(part, method.align_samples, generator) for part in classes])
            for chosen in torch.randperm(len(rows), generator=generator).to(rows.device).split(method.align_samples):
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(head(pooled_only(drawn[chosen], context.host.info)), rows[chosen]).backward()
                optimizer.step()
            rates.step()
        optimizer.zero_grad(set_to_none=True)

    def _features(self, context: Context, task: str, *, prompted: bool) -> tuple[Tensor, Tensor]:
        """Features ``(N, d)`` of a task's training images, plain or prompted, and rows ``(N,)`` of the head."""
        host, names, features, rows = context.host, list(context.host.head_of(task).classes), [], []
        for _, images, targets in context.batches(train=False, tasks=[task]):
            features.append((host(images, task) if prompted else host.plain(images)).pooled.float())
            rows += [names.index(target["classes"][int(target["label"])]) for target in targets]
        return torch.cat(features), torch.tensor(rows, device=features[0].device)

    def _group(self, context: Context, task: str) -> list[tuple[str, DescribedPrefix]]:
        """The tasks with the head of ``task`` whose prompted classes are described, and where."""
        names = context.host.head_names
        group = [(name, self._described(context, name)) for name in context.seen if names.get(name) == names[task]]
        return [(name, part) for name, part in group if len(part.means)]

    def _described(self, context: Context, task: str) -> DescribedPrefix:
        part: DescribedPrefix = self._parts(context, task)[0]
        return part

    def _parts(self, context: Context, task: str) -> list[Any]:
        return owned_parts(self.method, context.host, task)


def contrast(features: Tensor, means: Tensor, temperature: float) -> Tensor:
    """``mean_h log(s(h, M) / (s(h, H) + s(h, M)))`` of ``features (B, d)`` and ``means (C, d)``."""
    normalised = F.normalize(features.float(), dim=-1)
    near = normalised @ F.normalize(torch.cat([means, features.float()]), dim=-1).T / temperature
    return (near[:, : len(means)].logsumexp(1) - near.logsumexp(1)).mean()


def draws(part: DescribedPrefix, count: int, generator: torch.Generator) -> Tensor:
    """``count`` draws from the Gaussian of each class, ``(C count, d)``."""
    noise = torch.randn(len(part.means), count, part.means.shape[1], generator=generator).to(part.means)
    jitter = _JITTER * torch.eye(part.means.shape[1]).to(part.means)
    factors = torch.linalg.cholesky(part.covariances + jitter)
    return (part.means[:, None] + noise @ factors.transpose(1, 2)).flatten(0, 1)


def pooled_only(pooled: Tensor, info: FeaturesInfo) -> Features:
    """Features for a head that classifies by ``pooled (B, d)``; the rest of them is blank."""
    maps = tuple(pooled.new_zeros(len(pooled), width, 1, 1) for width in info.channels)
    return Features(
        pooled, maps, pooled.new_zeros(len(pooled), info.prefix, info.channels[-1]) if info.prefix else None
    )
