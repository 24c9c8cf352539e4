"""SCT, salient channel tuning (IJCV 2023, arXiv 2309.08513): a square map on the few channels that a task uses most.

``x[K] += s (W x[K] + b)`` on the stream behind each attention. ``K`` are the channels with the largest activations
on the training data: for each class the root of the mean square over its images and tokens, then the mean over the
classes of all tasks (a task's samples without a class label count as one class). They are chosen once, before training,
and saved with the part. ``W`` and ``b`` start at zero; until data was seen, ``K`` are the first channels. (The released
code draws ``W``, and takes norms instead of means, so that a class with more images weighs more.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mtpeft.api import Context, Count, Declarations, InputPart, Method, Positive, Routine, Site, zeros


class ChosenChannels(InputPart):
    """``weight (K, K)``, ``bias (K,)`` and the indices ``channels (K,)``."""

    channels: Tensor
    chosen: Tensor

    def __init__(self, width: int, count: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.weight, self.bias = zeros(count, count), zeros(count)
        self.register_buffer("channels", torch.arange(count))
        self.register_buffer("chosen", torch.tensor(0))
        self.squares: dict[tuple[str, int], list[Tensor]] | None = None
        self.labels: list[tuple[str, int]] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.squares is not None:
            for label, row in zip(self.labels, x.float().square().flatten(1, -2).mean(1), strict=True):
                self.squares.setdefault(label, []).append(row)
        change = self.scale * F.linear(x[..., self.channels], self.weight, self.bias)
        return x.index_add(-1, self.channels, change.to(x.dtype))

    @torch.no_grad()
    def choose(self) -> None:
        """The channels with the largest mean over classes of the root mean square."""
        rows, self.squares = self.squares, None
        if rows:
            importance = torch.stack([torch.stack(row).mean(0).sqrt() for row in rows.values()]).mean(0)
            self.channels.copy_(importance.topk(len(self.channels)).indices.sort().values)
            self.chosen.fill_(1)


@dataclass
class Sct(Method):
    """A small square map on each block's most active channels; ``channels`` is at most the stream's width."""

    declares = Declarations(
        category="addition",
        families="backbones whose blocks have an attention and an MLP",
        paper="Salient Channel Tuning, IJCV 2023, arXiv 2309.08513",
    )

    at: str = "middle"
    channels: Count = 96
    scale: Positive = 1.0

    def part(self, site: Site) -> InputPart:
        return ChosenChannels(site.width, min(self.channels, site.width), self.scale)

    def routine(self) -> MostActive:
        return MostActive(self)


class MostActive(Routine[Sct]):
    """Chooses the channels before training."""

    @torch.no_grad()
    def calibrate(self, context: Context) -> None:
        parts = [placed.part for placed in context.parts(self.method)]
        waiting = [part for part in parts if isinstance(part, ChosenChannels) and not part.chosen]
        for part in waiting:
            part.squares = {}
        for task, images, targets in context.batches() if waiting else ():
            for part in waiting:
                part.labels = [(task, label_of(target)) for target in targets]
            context.host(images, task)
        for part in waiting:
            part.choose()


def label_of(target: dict[str, Any]) -> int:
    """The class of an image; -1 for all images of a task that labels something else."""
    label = target.get("label")
    return int(label) if label is not None else -1
