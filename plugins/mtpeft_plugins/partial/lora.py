"""LoRA (ICLR 2022, arXiv 2106.09685): ``W + alpha / r * B A``, ``B`` zero at the start.

``init`` names other starts (`LowRankUpdate`). Where ``B A`` starts away from zero (PiSSA, OLoRA, orthogonal), the
part subtracts its own initial product, ``W + s (B A - B_0 A_0)``, where released code edits the frozen weight: the
backbone is shared, and other tasks' outputs must not move. EVA looks at data before training; all sites get the same
rank. With ``b_rate`` above 1, ``B`` learns so many times faster than ``A``: LoRA+ (ICML 2024, arXiv 2402.12354), which
takes 16.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from mtpeft.api import (
    Calibrated,
    Context,
    Count,
    Declarations,
    Fraction,
    InputMoments,
    LowRankPart,
    LowRankUpdate,
    Method,
    NotApplicable,
    Positive,
    Routine,
    Site,
    UsageError,
    first_batches,
    principal_directions,
    recording,
    uncalibrated,
)


@dataclass
class Lora(Method):
    """Low-rank updates of chosen weights; k x k convolutions become k x k to ``rank`` and 1 x 1 back."""

    declares = Declarations(
        category="partial", mergeable=True, families="all", paper="LoRA, ICLR 2022, arXiv 2106.09685"
    )

    at: str = "attn.q attn.v | mlp.fc1 mlp.fc2 | conv"
    rank: Count = 8
    alpha: Positive | None = None
    rslora: bool = False
    dropout: Fraction = 0.0
    init: Literal["kaiming", "gaussian", "orthogonal", "pissa", "olora", "eva"] = "kaiming"
    calibration_batches: Count = 16
    b_rate: Positive = 1.0

    @property
    def scale(self) -> float:
        """``alpha / r``, or ``alpha / sqrt(r)`` with rsLoRA; alpha is the rank unless given."""
        alpha = self.rank if self.alpha is None else self.alpha
        return alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def part(self, site: Site) -> LowRankPart:
        if self.init == "eva" or self.dropout:
            self._check_input(site)
        return LowRankUpdate(site, self.rank, self.scale, self.init, self.dropout)

    def _check_input(self, site: Site) -> None:
        """Refuse what needs a layer's input where there is none to be had, or too little of it."""
        who, setting = ("EVA", "init") if self.init == "eva" else ("dropout", "dropout")
        if site.bypassed or not isinstance(site.module, nn.Linear):
            raise NotApplicable(
                f"{who} takes the input of {site.name}, which is no linear layer that {site.model.family} calls",
                hint=f"choose other sites with at, or leave {setting} as it is by default",
            )
        if self.init == "eva" and self.rank > site.in_features:
            raise UsageError(
                f'init = "eva" takes {self.rank} directions of the {site.in_features} inputs of {site.name}',
                hint=f"give a rank of at most {site.in_features}, or leave such sites out with at",
            )

    def rate_of(self, tensor: str) -> float:
        return self.b_rate if tensor == "B" else 1.0

    def common(self, sites: Sequence[Site]) -> nn.Module | None:
        return Calibrated() if self.init == "eva" else None

    def routine(self) -> PrincipalStart | None:
        return PrincipalStart(self) if self.init == "eva" else None


class PrincipalStart(Routine[Lora]):
    """EVA: looks at the inputs before training."""

    def calibrate(self, context: Context) -> None:
        """``A`` becomes the leading principal directions of each site's inputs, once for each owner."""
        for placed, tasks in uncalibrated(self.method, context):
            moments = {p.site.path: (p.site.module, InputMoments(p.site.in_features)) for p in placed}
            with torch.no_grad(), recording(moments.values()):
                for task, images, _ in first_batches(context, tasks, self.method.calibration_batches):
                    context.host(images, task)
            for p in placed:
                seen = moments[p.site.path][1]
                if seen.count:
                    p.part.A.data.copy_(principal_directions(seen.gram, seen.total, seen.count, self.method.rank))
                    p.part.common.done.fill_(True)
