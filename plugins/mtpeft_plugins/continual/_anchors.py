"""Anchors: each trained number is drawn back to where earlier stages left it, as strongly as it mattered to them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mtpeft.api import Context, Count, Method, NonNegative, Part, Routine, Site, Targets


@dataclass
class AnchoringMethod(Method):
    """The settings of a method without parts that anchors what other methods train.

    Attributes:
        strength: of the penalty; 0 switches it off.
        every: measure the importance on every so many-th sample of a stage.
    """

    strength: NonNegative = 1.0
    every: Count = 1

    def part(self, site: Site) -> Part | None:
        return None


M = TypeVar("M", bound=AnchoringMethod)


@dataclass(eq=False)
class Anchored(Routine[M]):
    """``strength * scale * sum_i w_i (theta_i - a_i)^2`` over what trains; weights and anchors change as stages end.

    Attributes:
        importance: ``w`` by the names of `Host.trainable`.
        anchors: ``a``.
        scale: of the published penalty.
    """

    importance: dict[str, Tensor] = field(default_factory=dict)
    anchors: dict[str, Tensor] = field(default_factory=dict)
    scale = 1.0

    @abstractmethod
    def weigh(self, context: Context, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        """How much each number of ``parameters`` matters to the stage's tasks."""

    def carried(self, importance: Tensor) -> Tensor:
        """What is left of an earlier stage's importance when another one ends."""
        return importance

    def penalty(self, context: Context) -> Tensor | None:
        factor = self.scale * self.method.strength
        terms = [self._drawn(name, parameter) for name, parameter in self._anchored(context)]
        return factor * torch.stack(terms).sum() if terms and factor else None

    def end_stage(self, context: Context) -> None:
        if not self.method.strength:
            return
        parameters = _trained(context)
        for name, found in self.weigh(context, parameters).items():
            if name in self.importance:
                before = self.carried(self.importance[name]).to(found.device)
                here = _overlap(found, before)
                found[here] += before[here]
            self.importance[name], self.anchors[name] = found, parameters[name].detach().clone()

    def state(self) -> dict[str, Tensor]:
        kept = {f"importance/{name}": tensor for name, tensor in self.importance.items()}
        return kept | {f"anchor/{name}": tensor for name, tensor in self.anchors.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        pairs = [(*name.partition("/"), tensor) for name, tensor in state.items()]
        self.importance = {name: tensor for kind, _, name, tensor in pairs if kind == "importance"}
        self.anchors = {name: tensor for kind, _, name, tensor in pairs if kind == "anchor"}

    def _anchored(self, context: Context) -> list[tuple[str, nn.Parameter]]:
        trained = context.host.trainable(context.host.tasks)
        return [(n, p) for n, p in trained.items() if n in self.anchors and p.requires_grad]

    def _drawn(self, name: str, parameter: nn.Parameter) -> Tensor:
        anchor, weight = (kept[name].to(parameter.device) for kept in (self.anchors, self.importance))
        here = _overlap(parameter, anchor)
        return (weight[here] * (parameter[here] - anchor[here]).square()).sum()


def mean_over_samples(
    context: Context,
    parameters: dict[str, nn.Parameter],
    objective: Callable[[str, Tensor, Targets], Tensor],
    each: Callable[[Tensor], Tensor],
    every: int = 1,
) -> dict[str, Tensor]:
    """The mean of ``each(g)``, ``g`` being the gradient of one sample's ``objective(task, images, targets)``.

    Samples are those of the stage, prepared as in evaluation; a backward pass for each.
    """
    sums, count = {name: torch.zeros_like(p, requires_grad=False) for name, p in parameters.items()}, 0
    for number, sample in enumerate(_samples(context)):
        if number % every or not parameters:
            continue
        count += 1
        gradients = torch.autograd.grad(objective(*sample), list(parameters.values()), allow_unused=True)
        for total, gradient in zip(sums.values(), gradients, strict=True):
            if gradient is not None:
                total += each(gradient)
    return {name: total / max(count, 1) for name, total in sums.items()}


def _samples(context: Context) -> Any:
    for task, images, targets in context.batches(train=False):
        for row in range(len(images)):
            yield task, images[row : row + 1], targets[row : row + 1]


def _trained(context: Context) -> dict[str, nn.Parameter]:
    return {n: p for n, p in context.host.trainable(context.tasks).items() if p.requires_grad}


def _overlap(one: Tensor, other: Tensor) -> tuple[slice, ...]:
    """The numbers that both have: heads grow at their end, and parts may be cut there."""
    return tuple(slice(min(sizes)) for sizes in zip(one.shape, other.shape, strict=True))
