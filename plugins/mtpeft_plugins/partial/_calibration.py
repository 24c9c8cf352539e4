"""What methods share that look at data before they train: a memory of having done so, inputs and gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from mtpeft.api import Context, Site


class Calibrated(nn.Module):
    """For `Method.common`: whether an owner's parts have looked at the data; saved with what it owns."""

    done: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("done", torch.zeros((), dtype=torch.bool))


def limited(context: Context, batches: int) -> Iterator[tuple[str, Tensor, list[dict[str, Any]]]]:
    """The first ``batches`` batches of each task of the stage."""
    used = dict.fromkeys(context.tasks, 0)
    for task, images, targets in context.batches():
        if used[task] < batches:
            used[task] += 1
            yield task, images, targets
        elif all(count >= batches for count in used.values()):
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
def differentiable(sites: Iterable[Site]) -> Iterator[list[Tensor]]:
    """While inside, losses have gradients with respect to the sites' frozen tensors, which are handed out."""
    tensors = [site.model.original(site.tensor.path, site.tensor.name) for site in sites]
    try:
        yield [tensor.requires_grad_() for tensor in tensors]
    finally:
        for tensor in tensors:
            tensor.requires_grad_(False)


def squared_gradients(context: Context, sites: list[Site], batches: Iterable[tuple], loss: Any) -> list[Tensor]:
    """``sum g^2`` over batches for each site's rows of its frozen tensor; ``g`` is the gradient of ``loss``.

    Args:
        batches: ``(task, images, targets)``.
        loss: ``loss(task, images, targets) -> scalar``.
    """
    scores = [torch.zeros_like(site.weight, dtype=torch.float32) for site in sites]
    training = context.host.training
    context.host.eval()
    with differentiable(sites) as tensors:
        for batch in batches:
            gradients = torch.autograd.grad(loss(*batch), tensors, allow_unused=True)
            for score, gradient, site in zip(scores, gradients, sites, strict=True):
                if gradient is not None:
                    score += gradient[site.tensor.start : site.tensor.stop].float().square()
    context.host.train(training)
    return scores
