"""Each task's gradient of the shared parts from one backward pass.

When every sample belongs to one task and no operation of the trunk crosses samples, the rows of task ``t`` alone make
``t``'s gradient. Every segment of a batch therefore reads its own view of each shared parameter; the views' gradients
are the rows of the task-by-parameter Jacobian.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mtpeft.errors import MtpeftError
from mtpeft.peft.parts import Part
from mtpeft.peft.route import Route


class TaskGradients:
    """Views of the shared parameters, one for each segment of the batch.

    Args:
        parameters: ``METHOD/SITE/TENSOR`` -> the shared, trained parameters.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        self.tasks: list[str | None] = []
        self._stacks: dict[int, Tensor] = {}

    def begin(self, route: Route) -> None:
        """Called by the host when a batch enters."""
        tasks = [segment.task for segment in route.segments]
        if self._stacks and tasks != self.tasks:
            raise MtpeftError(
                "the batches of one gradient step hold different tasks",
                hint="give each micro-batch the same tasks, in one order",
            )
        if not self._stacks:
            self.tasks = tasks
            for parameter in self.parameters.values():
                stack = parameter.detach().expand(len(tasks), *parameter.shape)
                self._stacks[id(parameter)] = stack.requires_grad_()

    @contextmanager
    def using(self, part: Part, index: int) -> Iterator[None]:
        """While inside, ``part`` and what it shares read the views of segment ``index``."""
        modules = [*part.modules(), *(part.common.modules() if part.common is not None else ())]
        swapped = []
        for module in modules:
            for name, parameter in module._parameters.items():
                if parameter is not None and id(parameter) in self._stacks:
                    swapped.append((module, name, parameter))
        try:
            for module, name, parameter in swapped:
                module._parameters[name] = self._stacks[id(parameter)][index]
            yield
        finally:
            for module, name, parameter in swapped:
                module._parameters[name] = parameter

    def rows(self) -> dict[str, Tensor]:
        """Parameter name -> its gradients ``(T, *shape)``, by ``tasks``; zero where a task did not reach it."""
        stacks = {name: self._stacks[id(p)] for name, p in self.parameters.items()}
        return {name: torch.zeros_like(s) if s.grad is None else s.grad for name, s in stacks.items()}

    def jacobian(self) -> Tensor:
        """All gradients as one matrix ``(T, P)``."""
        return torch.cat([rows.unsqueeze(-1).flatten(1) for rows in self.rows().values()], 1)

    def write(self, gradient: Tensor | None = None) -> None:
        """Set the parameters' ``.grad`` from one flat gradient ``(P,)`` (default: the sum over tasks)."""
        flat = self.jacobian().sum(0) if gradient is None else gradient
        sizes = [p.numel() for p in self.parameters.values()]
        for parameter, piece in zip(self.parameters.values(), flat.split(sizes), strict=True):
            parameter.grad = piece.view_as(parameter).clone()
