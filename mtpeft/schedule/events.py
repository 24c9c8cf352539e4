"""The five events of a schedule. A schedule says *when each task is met*; it knows nothing of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Begin:
    """A stage begins: these tasks train for ``steps`` updates."""

    stage: int
    tasks: tuple[str, ...]
    steps: int


@dataclass(frozen=True)
class Batch:
    """Forward and backward on this many samples of each task; gradients add up until the next `Update`.

    Attributes:
        quota: samples of each task in this batch.
        whole: samples of each task in the whole update, where that is cut into several batches; empty where it is not.
    """

    quota: Mapping[str, int]
    whole: Mapping[str, int] = field(default_factory=dict)

    def share(self, task: str) -> float:
        """The factor on this batch's mean loss of ``task`` with which gradients add up to those of one whole batch."""
        return self.quota[task] / self.whole.get(task, self.quota[task])


@dataclass(frozen=True)
class Update:
    """One optimizer step, number ``step`` of the stage (from 0)."""

    step: int


@dataclass(frozen=True)
class Evaluate:
    """Evaluate ``tasks`` on ``split``; ``final`` at a stage's end, where the row goes into the result matrix.

    Attributes:
        probe: inside a stage, for the stability gap; it decides nothing.
        ahead: tasks of the next stage to evaluate before they train, for forward transfer.
    """

    stage: int
    tasks: tuple[str, ...]
    split: str = "test"
    final: bool = True
    probe: bool = False
    ahead: tuple[str, ...] = ()


@dataclass(frozen=True)
class End:
    """A stage ends: what its tasks own is finished."""

    stage: int
    tasks: tuple[str, ...]


Event = Begin | Batch | Update | Evaluate | End
