"""AdaLoRA (ICLR 2023, arXiv 2303.10512): an update in the form of an SVD, whose rank goes where it matters.

``W' = W + s P diag(l) Q`` with ``l`` zero at the start. ``P`` and ``Q`` are kept near orthogonal by a penalty,
``g (||P^T P - I||^2 + ||Q Q^T - I||^2)``, here its mean over all matrices. After a share ``warmup`` of the updates the
number of triplets falls by a cubic schedule from ``rank`` to ``target`` per weight, which it reaches with a share
``settle`` of the updates left: the ``l`` of the least important are set to zero after the optimizer's step. A triplet's
importance is that of ``l_k`` plus the means over ``P_k`` and ``Q_k``, each number's a smoothed ``|w dL/dw|`` times its
smoothed uncertainty. Each owner's triplets compete among themselves, so no task takes another's rank. In continual
learning every stage runs the whole schedule for the parts that it trains.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor, nn

from mtpeft.api import (
    Context,
    Count,
    Declarations,
    Fraction,
    LowRankPart,
    Method,
    NonNegative,
    Positive,
    Routine,
    Site,
    zeros,
)


class Triplets(LowRankPart):
    """``P (out, r)`` and ``Q (r, in)`` at N(0, .02), ``l (r,)`` zero."""

    def __init__(self, site: Site, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.P = nn.Parameter(0.02 * torch.randn(site.out_features, rank))
        self.l = zeros(rank)
        self.Q = nn.Parameter(0.02 * torch.randn(site.down_shape(rank)))

    def factors(self) -> tuple[Tensor, Tensor, float]:
        return self.l.view(-1, *[1] * (self.Q.ndim - 1)) * self.Q, self.P, self.scale

    def skewness(self) -> Tensor:
        """How far ``P`` and ``Q`` are from orthogonal: the sum of two squared Frobenius norms."""
        rows, eye = self.Q.flatten(1), torch.eye(len(self.l), device=self.l.device)
        return (self.P.t() @ self.P - eye).square().sum() + (rows @ rows.t() - eye).square().sum()


@dataclass
class Adalora(Method):
    """LoRA that starts with ``rank`` triplets for each weight and keeps the most important ``target`` on average."""

    declares = Declarations(
        category="partial", mergeable=True, families="all", paper="AdaLoRA, ICLR 2023, arXiv 2303.10512"
    )

    at: str = "attn.q attn.k attn.v attn.proj mlp.fc1 mlp.fc2 | conv"
    rank: Count = 12
    target: Count = 8
    alpha: Positive | None = None
    warmup: Fraction = 0.1
    settle: Fraction = 0.5
    interval: Count = 10
    smoothing: Fraction = 0.85
    orthogonality: NonNegative = 0.5

    def __post_init__(self) -> None:
        self.require(self.target <= self.rank, f"target is {self.target}", "a target is at most the rank")
        shares = self.warmup + self.settle < 1
        self.require(shares, f"warmup is {self.warmup} and settle {self.settle}", "together these shares are below 1")

    def part(self, site: Site) -> LowRankPart:
        return Triplets(site, self.rank, (self.rank if self.alpha is None else self.alpha) / self.rank)

    def routine(self) -> RankAllocation:
        return RankAllocation(self)


@dataclass(eq=False)
class RankAllocation(Routine[Adalora]):
    """Weighs the triplets of each owner, and prunes them by the schedule.

    Attributes:
        importance: ``OWNER/SITE/TENSOR/size`` and ``.../uncertainty`` -> smoothed, in the tensor's shape.
    """

    importance: dict[str, Tensor] = field(default_factory=dict)

    def begin_stage(self, context: Context) -> None:
        self.importance = {}

    def penalty(self, context: Context) -> Tensor | None:
        weight, terms = self.method.orthogonality, [part.skewness() for _, part in self.trained(context)]
        return weight * torch.stack(terms).mean() / 2 if terms and weight else None

    @torch.no_grad()
    def after_backward(self, context: Context) -> None:
        if context.step >= self.stop(context.steps):
            return
        for key, part in self.trained(context):
            for name, parameter in part.named_parameters():
                if parameter.grad is not None:
                    now = (parameter * parameter.grad).abs()
                    size = self._smooth(f"{key}/{name}/size", now)
                    self._smooth(f"{key}/{name}/uncertainty", (now - size).abs())

    @torch.no_grad()
    def after_step(self, context: Context) -> None:
        done, steps = context.step + 1, context.steps
        if done <= self.method.warmup * steps or (done % self.method.interval and done < self.stop(steps)):
            return
        for _, owned in groupby(self.trained(context), key=lambda pair: pair[0].partition("/")[0]):
            self.prune(dict(owned), self.budget(done, steps))

    def end_stage(self, context: Context) -> None:
        self.importance = {}

    def state(self) -> dict[str, Tensor]:
        return dict(self.importance)

    def restore(self, state: dict[str, Tensor]) -> None:
        self.importance = dict(state)

    def stop(self, steps: int) -> float:
        """The update at which the target is reached."""
        return (1 - self.method.settle) * steps

    def budget(self, done: int, steps: int) -> float:
        """Triplets for each weight, on average, after ``done`` of ``steps`` updates."""
        start, stop = self.method.warmup * steps, self.stop(steps)
        left = 1 - min(max((done - start) / (stop - start), 0), 1)
        return self.method.target + (self.method.rank - self.method.target) * left**3

    def prune(self, parts: dict[str, Triplets], budget: float) -> None:
        """Keep the most important triplets of all ``parts``, ``budget`` for each on average."""
        scores = torch.cat([self.score(key, part) for key, part in parts.items()])
        kept = torch.zeros_like(scores)
        kept[scores.argsort(descending=True, stable=True)[: round(budget * len(parts))]] = 1
        for part, mask in zip(parts.values(), kept.split(self.method.rank), strict=True):
            part.l.mul_(mask)

    def score(self, key: str, part: Triplets) -> Tensor:
        """Importance of each triplet ``(r,)``."""
        found = {name: torch.zeros_like(parameter) for name, parameter in part.named_parameters()}
        for name in found:
            if f"{key}/{name}/size" in self.importance:
                pair = (self.importance[f"{key}/{name}/{what}"] for what in ("size", "uncertainty"))
                found[name] = next(pair).to(part.l.device) * next(pair).to(part.l.device)
        return found["l"] + found["P"].mean(0) + found["Q"].flatten(1).mean(1)

    def trained(self, context: Context) -> Iterator[tuple[str, Triplets]]:
        """``OWNER/SITE`` and part, of the parts that this stage trains."""
        for placed in context.parts(self.method):
            if isinstance(placed.part, Triplets):
                yield f"{placed.owner}/{placed.site.name}", placed.part

    def _smooth(self, key: str, now: Tensor) -> Tensor:
        before = self.importance.get(key, torch.zeros_like(now)).to(now.device)
        self.importance[key] = before.lerp(now, 1 - self.method.smoothing)
        return self.importance[key]
