"""Adapt one frozen vision backbone to many tasks with small PEFT modules, together or one after another.

Everything is loaded when first used: importing mtpeft imports no torch, touches no network and changes no global state.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtpeft.backbone import create as create_backbone
    from mtpeft.errors import MtpeftError
    from mtpeft.hosts import adapt, head, load

__version__ = "0.1.0"
__all__ = ["MtpeftError", "__version__", "adapt", "create_backbone", "head", "load"]

_WHERE = {
    "MtpeftError": "mtpeft.errors:MtpeftError",
    "adapt": "mtpeft.hosts:adapt",
    "create_backbone": "mtpeft.backbone:create",
    "head": "mtpeft.hosts:head",
    "load": "mtpeft.hosts:load",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _WHERE[name].partition(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return __all__
