"""What methods share that look at data before they train: whose turn it is, which batches, inputs and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mtpeft.api import Context, Method, Site, evaluating

Batches = Iterable[tuple[str, Tensor, list[dict[str, Any]]]]


class Calibrated(nn.Module):
    """For `Method.common`: whether an owner's parts have looked at the data; saved with what it owns."""

    done: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("done", torch.zeros((), dtype=torch.bool))


def fresh(method: Method, context: Context) -> Iterator[tuple[list[Any], list[str]]]:
    """For each owner that trains and has not looked at data yet: its parts with their sites, and its tasks here."""
    placed: dict[str, dict[Any, None]] = {}
    tasks: dict[str, dict[str, None]] = {}
    for task in context.tasks:
        for found in context.host.parts_of(method, [task]):
            if not found.part.common.done and found.owner not in context.host.frozen:
                placed.setdefault(found.owner, {})[found] = None
                tasks.setdefault(found.owner, {})[task] = None
    for owner in placed:
        yield list(placed[owner]), list(tasks[owner])


def limited(context: Context, tasks: Sequence[str], batches: int) -> Batches:
    """The first ``batches`` batches of each of ``tasks``."""
    left = dict.fromkeys(tasks, batches)
    for task, images, targets in context.batches():
        if left.get(task, 0):
            left[task] -= 1
            yield task, images, targets
        if not any(left.values()):
            return


class Moments:
    """``sum x x^T (in, in)``, ``sum x (in,)`` and the number of the inputs that a linear layer meets."""

    def __init__(self, width: int) -> None:
        self.gram, self.total, self.count = torch.zeros(width, width), torch.zeros(width), 0

    @torch.no_grad()
    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0].flatten(0, -2).float()
        self.gram = self.gram.to(x.device) + x.t() @ x
        self.total = self.total.to(x.device) + x.sum(0)
        self.count += len(x)


@contextmanager
def watching(moments: Iterable[tuple[nn.Module, Moments]]) -> Iterator[None]:
    """While inside, the inputs of modules go into their moments."""
    handles = [module.register_forward_pre_hook(moment) for module, moment in moments]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def differentiable(sites: Sequence[Site]) -> Iterator[list[Tensor]]:
    """While inside, losses have gradients with respect to the sites' frozen tensors, which are handed out."""
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
    """The sum over batches of ``each(g)``, ``g`` the gradient of ``loss`` by each site's frozen weight.

    Gives None where there was no batch.
    """
    sums = [torch.zeros_like(site.weight, dtype=torch.float32) for site in sites]
    looked = False
    with evaluating(context.host), differentiable(sites) as tensors, torch.enable_grad():
        for batch in batches:
            looked = True
            gradients = torch.autograd.grad(loss(*batch), tensors, allow_unused=True)
            for total, gradient, site in zip(sums, gradients, sites, strict=True):
                if gradient is not None:
                    total += each(gradient[site.rows.start : site.rows.stop].float())
    return sums if looked else None
