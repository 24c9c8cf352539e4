"""The contract of an optimizer, one over what a stage trains, and its learning rate at each update."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from math import cos, pi
from typing import Any

import torch
from torch import nn

_OURS = ("params", "lr", "peak", "weight_decay")
"""What `build_optimizer` puts into a group."""


@dataclass
class Optimizer(ABC):
    """Subclass as a dataclass: the fields are the optimizer's own settings.

    Learning rates and weight decay come with the groups.
    """

    @abstractmethod
    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """A torch optimizer over parameter groups, each with ``params``, ``lr`` and ``weight_decay``."""


def build_optimizer(
    optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], rates: Mapping[str, float], *, weight_decay: float
) -> torch.optim.Optimizer:
    """One over ``parameters``, of which vectors (biases, norms, gains) do not decay.

    Args:
        rates: the peak learning rate of each parameter; its group keeps it as ``peak``.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {(0.0, False): []}  # torch wants a group, even an empty one
    for key, parameter in parameters.items():
        groups.setdefault((rates[key], parameter.ndim >= 2), []).append(parameter)
    tables = [
        {"params": members, "lr": peak, "peak": peak, "weight_decay": weight_decay if decays else 0.0}
        for (peak, decays), members in groups.items()
    ]
    return optimizer.build(tables)


def group_counters(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What an optimizer counts in its groups, as timm's LAMB does its steps: the same in each."""
    group = optimizer.param_groups[0]
    return {name: group[name] for name in group if name not in (*optimizer.defaults, *_OURS)}


def set_group_counters(optimizer: torch.optim.Optimizer, counted: Mapping[str, Any]) -> None:
    """Go on counting from what `group_counters` gave."""
    for group in optimizer.param_groups:
        group.update(deepcopy(dict(counted)))  # a tensor is counted up in place, once in each group


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
