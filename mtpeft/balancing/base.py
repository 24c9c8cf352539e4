"""The contract of a balancer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass
class Balancer(ABC):
    """Subclass as a dataclass: the fields are the settings of a recipe's ``[balance]`` table.

    The loop calls `begin` at each stage before it makes the optimizer, then for each batch `combine`. A balancer that
    sets ``needs_task_gradients`` is given each task's own gradient as well: its `aggregate` says what the shared
    parameters' gradient is, while heads and what tasks own keep the gradient of `combine`'s scalar.
    """

    needs_task_gradients: ClassVar[bool] = False

    def begin(self, weights: Mapping[str, float]) -> None:
        """A stage begins with these tasks; each weight is the task's ``loss_weight``, a factor on its loss."""
        self.weights = dict(weights)

    @abstractmethod
    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The scalar to call backward on, from a scalar loss of each task in the batch (some or all of the stage's)."""

    def aggregate(self, jacobian: Tensor) -> Tensor:
        """``(T, P)``, a row for each task's gradient of the P shared parameters, to ``(P,)``. Default: their sum."""
        return jacobian.sum(0)

    def parameters(self) -> list[nn.Parameter]:
        """What the balancer learns with the stage's optimizer, without weight decay; known after `begin`."""
        return []

    def state(self) -> dict[str, Tensor]:
        """What must survive a restart; parameters included."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave; called after `begin`."""
