"""From a configuration, or one line, to methods."""

from __future__ import annotations

from collections.abc import Sequence

from mtpeft.config import Config, load_methods
from mtpeft.peft.method import Method
from mtpeft.plugins import create


def build_methods(config: Config) -> list[tuple[str, Method]]:
    """The methods of a configuration under their labels, in the order written.

    Raises:
        UsageError: for an unknown method or setting, or a value that does not fit.
    """
    return [
        (m.label, create("methods", m.name, m.settings, f"methods.{m.label}", config.origin)) for m in config.methods
    ]


def as_methods(method: str | Method | Sequence[tuple[str, Method]]) -> list[tuple[str, Method]]:
    """``"lora@shared+adaptformer@task"``, a method, or named methods, as named methods.

    Raises:
        UsageError: for a text that names none.
    """
    if isinstance(method, Method):
        return [(type(method).__name__.lower(), method)]
    return build_methods(load_methods(method)) if isinstance(method, str) else list(method)
