"""LAE (ICCV 2023, arXiv 2303.10070): a module that learns, one that follows it slowly, and the surer of both answers.

Low-rank updates of keys and values, ``W + B A``. From the second stage on the *online* ones stand still for a share
``freeze`` of the updates, while the head learns; behind each update the *offline* ones follow,
``off <- momentum * off + (1 - momentum) * on``. Training is by cross-entropy over the stage's classes, with the online
ones. An answer is the elementwise maximum of both softmaxes, as logarithms: two passes. The paper takes the first five
blocks (``blocks = "0-4"``), and adapters or prefixes as well.

Ours: in an owner's first stage the offline module equals the online one, for there is nothing older to hold on to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtpeft.api import (
    SHARED,
    Calibrated,
    Context,
    Count,
    Declarations,
    Fraction,
    LowRankUpdate,
    Method,
    NotApplicable,
    Passes,
    Route,
    Routine,
    Share,
    Site,
    Targets,
    local_logits,
)


class OnlineOffline(LowRankUpdate):
    """A trained pair of factors, and one that follows it and acts in passes that are given ``offline``."""

    input_dependent = True
    A_offline: Tensor
    B_offline: Tensor

    def __init__(self, site: Site, rank: int) -> None:
        super().__init__(site, rank, 1.0)
        self.register_buffer("A_offline", self.A.detach().clone())
        self.register_buffer("B_offline", self.B.detach().clone())

    def factors(self) -> tuple[Tensor, Tensor, float]:
        if self.given("offline") is None:
            return super().factors()
        return self.A_offline, self.B_offline, self.scale

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        self.A_offline.lerp_(self.A, 1 - momentum)
        self.B_offline.lerp_(self.B, 1 - momentum)


@dataclass
class Lae(Method):
    """Low-rank updates learned at a calibrated speed, accumulated by a moving average, and asked together."""

    declares = Declarations(
        category="continual",
        inference_passes=2,
        accepts=("cls",),
        families="where attention has linear layers that are called",
        learning_rate=2.8e-3,
        paper="LAE, ICCV 2023, arXiv 2303.10070",
    )

    at: str = "attn.k attn.v"
    rank: Count = 5
    momentum: Share = 0.9999
    freeze: Fraction = 0.6

    def part(self, site: Site) -> OnlineOffline:
        if site.bypassed or not isinstance(site.module, nn.Linear):
            raise NotApplicable(
                f"lae works on the input of {site.name}, which is no linear layer that {site.model.family} calls",
                hint="choose other sites with at",
            )
        return OnlineOffline(site, self.rank)

    def common(self, sites: Sequence[Site]) -> nn.Module:
        return Calibrated()

    def answer(self, host: Passes, images: Tensor, task: str | None, head: nn.Module) -> Tensor:
        route, offline = Route.single(task, len(images)), torch.ones(len(images), device=images.device)
        outputs = [head(host.run(images, route, given)) for given in (None, {"offline": offline})]
        return torch.maximum(*(logits.float().log_softmax(1) for logits in outputs))

    def routine(self) -> Accumulation:
        return Accumulation(self)


@dataclass(eq=False)
class Accumulation(Routine[Lae]):
    """Lets the head learn first, and the offline module follow.

    Attributes:
        waiting: the shared parts stand still until the share of updates is over.
    """

    waiting: bool = False

    def begin_stage(self, context: Context) -> None:
        begun = any(placed.part.common.done for placed in context.parts(self.method) if placed.owner == SHARED)
        self.waiting = begun and self.method.freeze > 0
        if self.waiting:
            context.host.freeze(SHARED)

    def begin_update(self, context: Context) -> bool:
        if self.waiting and context.step >= self.method.freeze * context.steps:
            self._release(context)
            return True
        return False

    def adjust(self, context: Context, task: str, outputs: Any, targets: Targets) -> tuple[Any, Targets]:
        return local_logits(context, task, outputs), targets

    def after_step(self, context: Context) -> None:
        for placed in context.parts(self.method):
            if isinstance(placed.part, OnlineOffline):
                placed.part.follow(self.method.momentum if placed.part.common.done else 0.0)

    def end_stage(self, context: Context) -> None:
        self._release(context)
        for placed in context.parts(self.method):
            placed.part.common.done.fill_(True)

    def state(self) -> dict[str, Tensor]:
        return {"waiting": torch.tensor(True)} if self.waiting else {}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.waiting = "waiting" in state

    def _release(self, context: Context) -> None:
        if self.waiting:
            context.host.unfreeze(SHARED)
        self.waiting = False
