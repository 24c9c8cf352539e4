"""GEM (NeurIPS 2017, arXiv 1706.08840): no step may raise the loss of an earlier task on its memory.

Where the gradient ``g`` has a negative product with the gradient ``g_k`` of an earlier task's samples in memory, it is
replaced by the nearest vector without: ``g~ = g + G^T (v + margin)``, ``v >= 0`` minimising
``v^T G G^T v / 2 + (G g)^T v``. A method without parts: ``lora+gem``. It sees the gradient of everything that trains,
the heads of earlier tasks included, before clipping.

Where ours differs: of each earlier task's samples, ``batch`` are drawn in every update, where the paper takes all; and
they are a fair sample of its data, where the paper keeps the last. The margin is added to ``v``, as the paper says.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mtpeft.api import Context, Declarations, NonNegative, Whole
from mtpeft_plugins.continual._replay import Rehearsal, ReplayingMethod


@dataclass
class Gem(ReplayingMethod):
    """Projects each gradient to where no earlier task is harmed, as far as a memory can tell."""

    declares = Declarations(
        category="continual",
        mergeable=True,
        families="all",
        paper="Gradient Episodic Memory, NeurIPS 2017, arXiv 1706.08840",
    )

    samples: Whole = 5120
    balanced: bool = True
    margin: NonNegative = 0.5

    def routine(self) -> Projection:
        return Projection(self)


class Projection(Rehearsal[Gem]):
    """Keeps samples of each task, and projects gradients."""

    def penalty(self, context: Context) -> Tensor | None:
        self.keep(context)
        return None

    def after_backward(self, context: Context) -> None:
        earlier = self.trains(context)
        trained = context.host.trainable((*context.tasks, *earlier)).values()
        parameters = [parameter for parameter in trained if parameter.requires_grad]
        rows = [row for task in earlier if (row := self.gradient(context, task, parameters)) is not None]
        if not rows:
            return
        own = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
        constraints = torch.stack(rows)
        if not bool((constraints @ own < 0).any()):
            return
        pieces = projected(own, constraints, self.method.margin).split([p.numel() for p in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter).clone()

    def gradient(self, context: Context, task: str, parameters: list[torch.nn.Parameter]) -> Tensor | None:
        """The gradient ``(P,)`` of an earlier task's loss on what is drawn of its memory."""
        loss = self.loss(context, f"gem {task}", [task])
        if loss is None or not loss.requires_grad:
            return None
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        return torch.cat([gradient.flatten() for gradient in gradients])


def projected(gradient: Tensor, constraints: Tensor, margin: float = 0.0) -> Tensor:
    """The vector nearest to ``gradient (P,)`` whose product with each row of ``constraints (T, P)`` is not negative.

    Args:
        margin: added to the multipliers: how far beyond that it goes.
    """
    gram = (constraints @ constraints.t()).double()
    multipliers = _multipliers(gram, (constraints @ gradient).double()) + margin
    return gradient + constraints.t() @ multipliers.to(gradient)


def _multipliers(gram: Tensor, linear: Tensor, rounds: int = 1000) -> Tensor:
    """``v >= 0`` that minimises ``v^T gram v / 2 + linear^T v``, one coordinate after another."""
    v = torch.zeros_like(linear)
    for _ in range(rounds):
        before = v.clone()
        for i in range(len(v)):
            if gram[i, i] > 0:
                v[i] = (v[i] - (gram[i] @ v + linear[i]) / gram[i, i]).clamp(min=0)
        if torch.allclose(v, before, rtol=1e-9, atol=1e-12):
            break
    return v
