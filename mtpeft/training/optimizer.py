"""AdamW over what a stage trains, and its learning rate at each update."""

from __future__ import annotations

from collections.abc import Mapping
from math import cos, pi

import torch
from torch import nn


def build_optimizer(
    parameters: Mapping[str, nn.Parameter],
    rates: Mapping[str, float],
    *,
    betas: tuple[float, float],
    weight_decay: float,
) -> torch.optim.AdamW:
    """AdamW; vectors (biases, norms, gains) do not decay.

    Args:
        rates: the peak learning rate of each parameter; its group keeps it as ``peak``.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {(0.0, False): []}  # AdamW wants a group, even an empty one
    for name, parameter in parameters.items():
        groups.setdefault((rates[name], parameter.ndim >= 2), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": members, "peak": peak, "weight_decay": weight_decay if decays else 0.0}
            for (peak, decays), members in groups.items()
        ],
        betas=betas,
    )


def rate(step: int, steps: int, warmup: int) -> float:
    """The factor on the learning rate: linear up over ``warmup`` updates, then half a cosine down to zero.

    >>> [round(rate(step, 6, 2), 3) for step in range(6)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + cos(pi * (step - warmup) / max(1, steps - warmup)))


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def clip(parameters: Mapping[str, nn.Parameter], largest: float) -> float:
    """Scale all gradients together to a norm of at most ``largest`` (0: leave them); the norm before."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters.values() if p.grad is not None])
    if largest > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters.values(), largest, norm)
    return float(norm)
