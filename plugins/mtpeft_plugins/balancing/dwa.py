"""Dynamic weight average (Liu, Johns and Davison, CVPR 2019)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtpeft.api import Balancer, Count, Positive


@dataclass
class Dwa(Balancer):
    """``T softmax(rho / temperature)`` on the weighted losses, rho a task's mean loss in the last window over the one
    before; every weight is 1 until each task has two windows. The paper's window is an epoch.

    Attributes:
        temperature: 2 in the paper; the larger, the more equal.
        window: batches of a task in one mean.
    """

    temperature: Positive = 2.0
    window: Count = 50

    def __post_init__(self) -> None:
        self.sums: dict[str, Tensor] = {}  # by task: mean before last, last mean, sum, batches

    def begin(self, weights: Mapping[str, float], tasks: Sequence[str]) -> None:
        super().begin(weights, tasks)
        for task in weights:
            self.sums.setdefault(task, torch.zeros(4, dtype=torch.float64))

    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        factors = self.factors(losses)
        for task, loss in losses.items():
            self._record(self.sums[task], float(loss.detach()))
        return torch.stack([factors[task] * self.weights[task] * loss for task, loss in losses.items()]).sum()

    def factors(self, more: Iterable[str] = ()) -> dict[str, float]:
        """The factor on each loss of the stage's T tasks, T in sum; ``more`` are tasks that came again."""
        tasks = tuple(dict.fromkeys((*self.tasks, *more)))
        table = torch.stack([self.sums[task] for task in tasks])  # (T, 4)
        ready = bool((table[:, 0] > 0).all())
        rho = table[:, 1] / table[:, 0] if ready else torch.ones(len(table))
        return dict(zip(tasks, (len(table) * (rho / self.temperature).softmax(0)).tolist(), strict=True))

    def _record(self, sums: Tensor, loss: float) -> None:
        sums[2] += loss
        sums[3] += 1
        if sums[3] == self.window:
            sums[0], sums[1] = sums[1].item(), sums[2] / self.window
            sums[2:] = 0

    def state(self) -> dict[str, Tensor]:
        return {task: sums.clone() for task, sums in self.sums.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.sums |= {task: sums.clone() for task, sums in state.items()}
