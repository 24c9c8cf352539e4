"""Every optimizer that timm knows, by timm's name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import timm.optim
import torch

from mtpeft.api import Optimizer, UsageError, did_you_mean


@dataclass
class Timm(Optimizer):
    """One of ``timm.optim.list_optimizers()``.

    Attributes:
        algorithm: timm's name for it, such as ``lamb`` or ``lion``.
        options: its own arguments.
    """

    algorithm: str
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = [str(name) for name in timm.optim.list_optimizers()]
        if self.algorithm not in known:
            raise UsageError(f'timm has no optimizer "{self.algorithm}"', hint=did_you_mean(self.algorithm, known))

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        try:
            return timm.optim.create_optimizer_v2(groups, self.algorithm, **self.options)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{self.algorithm} does not take {self.options}: {error}", hint="see timm.optim") from None
