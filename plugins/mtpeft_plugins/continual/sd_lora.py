"""SD-LoRA (ICLR 2025, arXiv 2501.13198): earlier tasks' directions are frozen, and how far to go along each is learned.

``W + a_t B_t A_t + sum_{s<t} a_s B_s A_s / (||B_s|| ||A_s||)``: the stage's own branch trains as it is, those of
earlier tasks are directions of unit norm, and all gains ``a`` train. Gains are shared, one for each branch and site;
directions belong to their tasks. Nothing is kept but these: no samples, and one pass at inference.

Where ours differs from the released code: when a stage ends, its branch is divided by ``||B_t|| ||A_t||`` and its gain
multiplied by it, so that no output moves; there the gain stays, and outputs jump. Gains are one for each site, there
one for the network, and for at most 20 tasks. The optimizer is the recipe's: tables were made with SGD at rates of .008
to .02, which the released code takes whatever its settings say (``optimizer = {name = "sgd"}``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtpeft.api import (
    SHARED,
    Context,
    Count,
    Declarations,
    LowRankPart,
    Method,
    ModuleMap,
    NonNegative,
    PerTask,
    Routine,
    Site,
    fill_down,
    zeros,
)
from mtpeft_plugins.continual._branches import freeze_earlier


class Gained(PerTask):
    """A tensor for each task, and a gain for each that is nobody's own."""

    together = True

    def __init__(self, factory: Callable[[], nn.Parameter], start: float) -> None:
        super().__init__(factory)
        self.start, self.gains = start, ModuleMap()

    def add_copy(self, task: str, like: Tensor) -> None:
        super().add_copy(task, like)
        self.gains[task] = nn.Parameter(torch.full((), self.start, device=like.device, dtype=like.dtype))

    def remove(self, task: str) -> None:
        super().remove(task)
        del self.gains[task]


class Directions(LowRankPart):
    """``A (r, in)`` Kaiming-uniform and ``B (out, r)`` zero for each task, and a gain for each."""

    def __init__(self, site: Site, rank: int, start: float) -> None:
        super().__init__()
        down, out = site.down_shape(rank), site.out_features
        self.A, self.B = PerTask(lambda: _down(down)), Gained(lambda: zeros(out, rank), start)

    def factors(self) -> tuple[Tensor, Tensor, float]:
        """All branches side by side, the gains in ``B``."""
        downs = [a for _, a in self.A.copies.items()]
        ups = [self.B.gains[task] * b for task, b in self.B.copies.items()]
        return torch.cat(downs), torch.cat(ups, 1), 1.0

    @torch.no_grad()
    def finish(self, task: str) -> None:
        """Make a branch a direction of unit norm, and its gain the rest; one that never moved stays as it is."""
        a, b = self.A.copies[task], self.B.copies[task]
        down, up = a.norm(), b.norm()
        if down > 0 and up > 0:
            a.div_(down)
            b.div_(up)
            self.B.gains[task].mul_(down * up)


def _down(shape: tuple[int, ...]) -> nn.Parameter:
    down = nn.Parameter(torch.empty(shape))
    fill_down(down, "kaiming")
    return down


@dataclass
class SdLora(Method):
    """LoRA for each task, whose direction is frozen with its stage and whose gain trains on; all of them act."""

    declares = Declarations(
        category="continual",
        mergeable=True,
        families="all",
        paper="SD-LoRA, ICLR 2025, arXiv 2501.13198",
    )

    at: str = "attn.q attn.v | mlp.fc1 mlp.fc2 | conv"
    rank: Count = 10
    gain: NonNegative = 0.8

    def part(self, site: Site) -> Directions:
        return Directions(site, self.rank, self.gain)

    def routine(self) -> Decoupling:
        return Decoupling(self)


class Decoupling(Routine[SdLora]):
    """Freezes earlier branches, and makes one a direction when its stage ends."""

    def begin_stage(self, context: Context) -> None:
        if self.method.scope == SHARED:
            freeze_earlier(context)

    def end_stage(self, context: Context) -> None:
        for placed in context.parts(self.method):
            for task in context.tasks:
                if isinstance(placed.part, Directions) and task in placed.part.B.copies:
                    placed.part.finish(task)
