"""Calibration: looking at data before training. Which owners are due, on which batches; inputs and gradients summed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mtpeft.backbone.extract import evaluating
from mtpeft.peft.method import Method
from mtpeft.peft.routine import Context
from mtpeft.peft.sites import Site

Batches = Iterable[tuple[str, Tensor, list[dict[str, Any]]]]


class Calibrated(nn.Module):
    """For `Method.common`: whether an owner's parts were calibrated, ``done ()``; saved with what it owns."""

    done: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("done", torch.zeros((), dtype=torch.bool))


def uncalibrated(method: Method, context: Context) -> Iterator[tuple[list[Any], list[str]]]:
    """Yields, for each owner that trains in this stage and is not calibrated, its parts and its tasks here.

    The method's `common` is a `Calibrated`, whose ``done`` the caller sets.

    Returns:
        ``(parts, tasks)``; the parts are `PartAtSite`, whose ``part`` has the method's own type.
    """
    placed: dict[str, dict[Any, None]] = {}
    tasks: dict[str, dict[str, None]] = {}
    for task in context.tasks:
        for found in context.parts(method, [task]):
            if not found.part.common.done:
                placed.setdefault(found.owner, {})[found] = None
                tasks.setdefault(found.owner, {})[task] = None
    for owner in placed:
        yield list(placed[owner]), list(tasks[owner])


def first_batches(context: Context, tasks: Sequence[str], batches: int) -> Batches:
    """Yields the first ``batches`` batches of each of ``tasks``, as ``(task, images, targets)``."""
    left = dict.fromkeys(tasks, batches)
    for task, images, targets in context.batches():
        if left.get(task, 0):
            left[task] -= 1
            yield task, images, targets
        if not any(left.values()):
            return


class InputMoments:
    """The inputs of a linear layer summed, as a forward pre-hook.

    Attributes:
        gram: ``sum x x^T (in, in)``, in fp32.
        total: ``sum x (in,)``.
        count: the number of inputs.
    """

    def __init__(self, width: int) -> None:
        self.gram, self.total, self.count = torch.zeros(width, width), torch.zeros(width), 0

    @torch.no_grad()
    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0].flatten(0, -2).float()
        self.gram = self.gram.to(x.device) + x.t() @ x
        self.total = self.total.to(x.device) + x.sum(0)
        self.count += len(x)


@contextmanager
def recording(moments: Iterable[tuple[nn.Module, InputMoments]]) -> Iterator[None]:
    """While inside, adds the inputs of each module to its moments."""
    handles = [module.register_forward_pre_hook(moment) for module, moment in moments]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def differentiable_weights(sites: Sequence[Site]) -> Iterator[list[Tensor]]:
    """While inside, losses have gradients with respect to the sites' frozen tensors.

    Returns:
        The tensors, whole: a site of a fused ``qkv`` is rows of its own.
    """
    tensors = [site.model.original(site.rows.path, site.rows.name) for site in sites]
    try:
        yield [tensor.requires_grad_() for tensor in tensors]
    finally:
        for tensor in tensors:
            tensor.requires_grad_(False)


def summed_gradients(
    context: Context,
    sites: Sequence[Site],
    batches: Batches,
    loss: Callable[[str, Tensor, list[dict[str, Any]]], Tensor],
    each: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> list[Tensor] | None:
    """Sums ``each(g)`` over batches, ``g`` being the gradient of ``loss`` with respect to a site's frozen weight.

    Runs in evaluation mode.

    Args:
        loss: ``loss(task, images, targets) -> scalar``.
        each: ``g (out, in)``, in fp32, to the same shape.

    Returns:
        For each site ``(out, in)`` or ``(out, in, kh, kw)``; None where there was no batch.
    """
    sums = [torch.zeros_like(site.weight, dtype=torch.float32) for site in sites]
    looked = False
    with evaluating(context.host), differentiable_weights(sites) as tensors, torch.enable_grad():
        for batch in batches:
            looked = True
            gradients = torch.autograd.grad(loss(*batch), tensors, allow_unused=True)
            for total, gradient, site in zip(sums, gradients, sites, strict=True):
                if gradient is not None:
                    total += each(gradient[site.rows.start : site.rows.stop].float())
    return sums if looked else None
