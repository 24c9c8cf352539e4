"""A tiny ViT under one method, every trained tensor moved: what the closed forms are tested on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mtpeft.peft.host import Host
from mtpeft.plugins import resolve
from mtpeft.testing import zoo


class Reparameterised:
    """``weight`` and ``bias`` give a module's tensors ``(frozen, with the method folded in)``."""

    def __init__(self, method: str, *, family: str = "vit", moved: bool = True, **settings: Any) -> None:
        torch.manual_seed(0)
        self.plain = zoo()[family]().state_dict()
        self.host = Host(zoo()[family](), [(method, resolve("methods", method)(**settings))], ["task"]).eval()
        self.common: Any = self.host.parts.shared_modules[method].get("shared")
        self.parts: dict[str, Any] = dict(self.host.parts.by_owner[method]["shared"].items())
        if moved:
            with torch.no_grad():
                for parameter in self.host.shared_parameters().values():
                    parameter.add_(0.3 * torch.randn(parameter.shape))

    def part(self, site: str) -> Any:
        return self.parts[f"blocks.0.{site}"]

    def weight(self, module: str) -> tuple[Tensor, Tensor]:
        return self._pair(f"blocks.0.{module}.weight")

    def bias(self, module: str) -> tuple[Tensor, Tensor]:
        return self._pair(f"blocks.0.{module}.bias")

    def change(self, module: str) -> Tensor:
        frozen, folded = self.weight(module)
        return folded - frozen

    def _pair(self, key: str) -> tuple[Tensor, Tensor]:
        return self.plain[key], self.host.merged_state("task")[key]


def detached(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def close(mine: Tensor, other: Tensor, tolerance: float = 1e-5) -> bool:
    """The same to a tolerance relative to the larger numbers."""
    return mine.shape == other.shape and bool(
        (mine - other).abs().max() <= tolerance * max(1.0, float(other.abs().max()))
    )
