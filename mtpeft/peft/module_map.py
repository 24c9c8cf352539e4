"""A dictionary of modules and parameters under any names (dots, ``items``, ``mlp``: all safe)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn


class ModuleMap(nn.Module):
    """Maps names to modules or parameters, in insertion order.

    `torch.nn.ModuleDict` refuses dots and its own method names; task and site names contain both.
    """

    def __init__(self) -> None:
        super().__init__()
        self._names: dict[str, str] = {}

    def __setitem__(self, name: str, value: nn.Module | nn.Parameter) -> None:
        attribute = self._names.get(name) or "_" + name.replace(".", "/")
        if name not in self._names and hasattr(self, attribute):  # "modules": torch has an attribute _modules
            attribute = "/" + attribute
        self._names[name] = attribute
        if isinstance(value, nn.Parameter):
            self.register_parameter(attribute, value)
        else:
            self.add_module(attribute, value)

    def __getitem__(self, name: str) -> Any:
        return getattr(self, self._names[name])

    def get(self, name: str) -> Any:
        """The value, or None."""
        return self[name] if name in self._names else None

    def __delitem__(self, name: str) -> None:
        delattr(self, self._names.pop(name))

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def items(self) -> list[tuple[str, Any]]:
        return [(name, self[name]) for name in self._names]
