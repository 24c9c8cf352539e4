"""Each task's gradient of the shared parts from one backward pass.

When every sample belongs to one task and no operation of the trunk crosses samples, the rows of task ``t`` alone make
``t``'s gradient. Every segment of a batch therefore reads its task's own view of each shared parameter; the views'
gradients are the rows of the task-by-parameter Jacobian. Views stay from batch to batch, so that the rows of several
micro-batches add up by task, whichever tasks each of them holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtpeft.peft.parts import Part
from mtpeft.peft.route import Route

Views = dict[int, Tensor]
"""``id`` of a parameter -> a leaf that shares its memory and has a gradient of its own."""


@dataclass(frozen=True)
class SegmentViews:
    """The views that each segment of one batch reads; a checkpoint runs a block again with those of its own batch."""

    segments: tuple[Views, ...]

    @contextmanager
    def using(self, part: Part, index: int) -> Iterator[None]:
        """While inside, ``part`` and what it shares read the views of segment ``index``."""
        views = self.segments[index]
        modules = [*part.modules(), *(part.common.modules() if part.common is not None else ())]
        swapped = []
        for module in modules:
            for name, parameter in module._parameters.items():
                if parameter is not None and id(parameter) in views:
                    swapped.append((module, name, parameter))
        try:
            for module, name, parameter in swapped:
                module._parameters[name] = views[id(parameter)]
            yield
        finally:
            for module, name, parameter in swapped:
                module._parameters[name] = parameter


class TaskGradients:
    """Views of the shared parameters, one for each task met.

    Args:
        parameters: ``METHOD/SITE/TENSOR`` -> the shared, trained parameters.

    Attributes:
        current: the views of the batch that entered last; None before the first.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        self.current: SegmentViews | None = None
        self._views: dict[str | None, Views] = {}

    @property
    def tasks(self) -> list[str | None]:
        """Whose the rows are, in the order they were met."""
        return list(self._views)

    def begin(self, route: Route) -> None:
        """Called by the host when a batch enters."""
        for task in route.tasks:
            if task not in self._views:
                self._views[task] = {id(p): p.detach().requires_grad_() for p in self.parameters.values()}
        self.current = SegmentViews(tuple(self._views[segment.task] for segment in route.segments))

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Inside, what reaches the views is no task's own: it is added to the parameters' ``.grad``."""
        views = [view for own in self._views.values() for view in own.values()]
        rows = [view.grad for view in views]
        for view in views:
            view.grad = None
        try:
            yield
        finally:
            for parameter in self.parameters.values():
                for own in self._views.values():
                    _add(parameter, own[id(parameter)].grad)
            for view, row in zip(views, rows, strict=True):
                view.grad = row

    def rows(self) -> dict[str, Tensor]:
        """Parameter name -> its gradients ``(T, *shape)``, by ``tasks``; zero where a task did not reach it."""
        return {
            name: torch.stack([_gradient(views[id(parameter)]) for views in self._views.values()])
            for name, parameter in self.parameters.items()
        }

    def jacobian(self) -> Tensor:
        """All gradients as one matrix ``(T, P)``."""
        return torch.cat([rows.unsqueeze(-1).flatten(1) for rows in self.rows().values()], 1)

    def write(self, gradient: Tensor | None = None) -> None:
        """Add one flat gradient ``(P,)`` (default: the sum over tasks) to the parameters' ``.grad``."""
        flat = self.jacobian().sum(0) if gradient is None else gradient
        sizes = [p.numel() for p in self.parameters.values()]
        for parameter, piece in zip(self.parameters.values(), flat.split(sizes), strict=True):
            _add(parameter, piece.view_as(parameter).clone())


def _gradient(view: Tensor) -> Tensor:
    return torch.zeros_like(view) if view.grad is None else view.grad


def _add(parameter: nn.Parameter, gradient: Tensor | None) -> None:
    if gradient is not None:
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
