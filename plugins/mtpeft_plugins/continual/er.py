"""Experience replay (arXiv 1902.10486, "On Tiny Episodic Memories"): each batch is joined by one from memory.

``L(batch) + weight * L(memory)``, both means. The memory is a reservoir of all that was trained on, the stage's own
samples included; ``balanced`` keeps as many of each task (the paper's ring buffer: of each class). A method without
parts: ``lora+er``. Heads and parts of earlier tasks train along with the stage's.

Where ours differs: the paper makes a single pass over data, here ``batch`` samples are drawn in every update of as many
passes as the recipe asks for; a sample met several times stands in memory once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from mtpeft.api import Context, Count, Declarations, NonNegative
from mtpeft_plugins.continual._replay import Rehearsal, ReplayingMethod


@dataclass
class Er(ReplayingMethod):
    """Trains on samples of earlier tasks, from a memory of fixed size, beside those of this one."""

    declares = Declarations(
        category="continual",
        mergeable=True,
        families="all",
        paper="On Tiny Episodic Memories in Continual Learning, arXiv 1902.10486",
    )

    batch: Count = 10
    weight: NonNegative = 1.0

    def routine(self) -> Replay[Any]:
        return Replay(self)


E = TypeVar("E", bound=Er)


class Replay(Rehearsal[E]):
    """Adds the loss of what is drawn from memory, then offers it the batch."""

    def penalty(self, context: Context) -> Tensor | None:
        loss = self.loss(context, "labels") if self.method.weight else None
        self.keep(context)
        return None if loss is None else self.method.weight * loss
