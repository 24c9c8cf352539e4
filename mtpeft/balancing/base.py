"""The contract of a balancer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass
class Balancer(ABC):
    """Subclass as a dataclass: the fields are the settings of a recipe's ``[balance]`` table.

    The loop calls `begin` at each stage before it makes the optimizer. Each update it calls `combine` for each of its
    batches, `aggregate` where ``needs_task_gradients``, and, when the optimizer has stepped, `after_step`. What a
    balancer knows of a task it keeps by the task's name: tasks come and go between stages, and between batches.

    Attributes:
        needs_task_gradients: `aggregate` is given each task's own gradient of the shared parameters, and says what
            theirs is, while heads and what tasks own keep the gradient of `combine`'s scalar.
        needs_losses_again: `after_step` is given the losses of the same batches after the step; costs a forward pass.
        weights: ``loss_weight`` of each task met so far.
        tasks: those of the stage.
    """

    needs_task_gradients: ClassVar[bool] = False
    needs_losses_again: ClassVar[bool] = False

    def begin(self, weights: Mapping[str, float], tasks: Sequence[str]) -> None:
        """A stage begins; what is known of tasks met before stays.

        Args:
            weights: each task's ``loss_weight``, a factor on its loss; of all tasks met so far, for earlier ones may
                come again (replay).
            tasks: those of this stage.
        """
        self.weights, self.tasks = dict(weights), tuple(tasks)

    @abstractmethod
    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The scalar to call backward on, from a scalar loss of each task in the batch.

        An update may be cut into several batches: the scalar of each counts as its part of the update.
        """

    def aggregate(self, jacobian: Tensor, tasks: Sequence[str], losses: Mapping[str, Tensor]) -> Tensor:
        """Each task's gradient of the P shared parameters to the one to step along ``(P,)``. Default: their sum.

        Args:
            jacobian: ``(T, P)``, the gradient of `combine`'s scalar through each task's samples, in the whole update;
                what penalties give is no row, and is added afterwards.
            tasks: whose the rows are; perhaps others in the next update.
            losses: each of these tasks' mean loss, detached, before its weight.
        """
        return jacobian.sum(0)

    def after_step(self, losses: Mapping[str, Tensor], again: Mapping[str, Tensor]) -> None:
        """The optimizer has stepped (GradNorm, FAMO).

        Args:
            losses: mean loss of each task in the update, detached, before its weight.
            again: the same on the same batches with the new parameters; empty unless ``needs_losses_again``.
        """

    def parameters(self) -> list[nn.Parameter]:
        """What the balancer learns with the stage's optimizer, without weight decay; known after `begin`.

        Of every task met so far, in the order they were met.
        """
        return []

    def state(self) -> dict[str, Tensor]:
        """What must survive a restart; parameters included."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave; called after `begin`."""
