"""The kinds of things that plugins register, and what each of them must be."""

from __future__ import annotations

import re
from dataclasses import dataclass, is_dataclass
from importlib import import_module
from inspect import get_annotations, isabstract, isclass
from typing import Any

KINDS = {
    "methods": "method",
    "tasks": "task type",
    "heads": "head",
    "readers": "reader",
    "schedules": "schedule",
    "balancers": "balancer",
    "loggers": "logger",
    "optimizers": "optimizer",
    "exporters": "exporter",
    "backbones": "backbone",
}
"""What plugins register, by kind, and what one of them is called in messages."""

CONTRACTS = {
    "methods": "Method",
    "tasks": "Task",
    "heads": "Head",
    "readers": "Reader",
    "schedules": "Schedule",
    "balancers": "Balancer",
    "loggers": "Logger",
    "optimizers": "Optimizer",
    "exporters": "Exporter",
}
"""The class of `mtpeft.api` that a kind's classes derive from; a kind that is not here takes any function."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")


@dataclass(frozen=True)
class Entry:
    """One registered thing: its id, ``package.module:Class``, and who brought it."""

    id: str
    reference: str
    plugin: str
    distribution: str
    version: str


def flaw_of_entry(id: Any, reference: Any) -> str:
    """What is wrong with ``id: reference`` as a plugin gave it; empty if nothing."""
    if not isinstance(id, str) or not _ID.fullmatch(id):
        return f'{id!r} is no id (letters, digits and "._/-")'
    module, colon, attribute = reference.partition(":") if isinstance(reference, str) else ("", "", "")
    named = all(part.isidentifier() for part in (*module.split("."), *attribute.split(".")))
    return "" if colon and named else f'the id "{id}" leads to {reference!r}, which is no "package.module:Class"'


def flaw_of_class(kind: str, made: Any) -> str:
    """What is wrong with the thing that a reference of this kind led to; empty if nothing."""
    if kind not in CONTRACTS:
        return "" if callable(made) else f"it is {_article(made)}, and no function"
    contract = getattr(import_module("mtpeft.api"), CONTRACTS[kind])
    if not isclass(made):
        return f"it is {_article(made)}, and no class"
    if not issubclass(made, contract):
        return f"it does not derive from mtpeft.api.{CONTRACTS[kind]}"
    if isabstract(made):
        return f"it is abstract: {', '.join(sorted(getattr(made, '__abstractmethods__', ())))} undefined"
    if is_dataclass(contract) and _undecorated(made):
        return "it has fields but is no dataclass: write @dataclass above it"
    return ""


def _article(thing: Any) -> str:
    return f"a {type(thing).__name__}"


def _undecorated(cls: type) -> bool:
    """Whether a class names fields of its own that no decorator made settings of."""
    named = [name for name, type in get_annotations(cls).items() if "ClassVar" not in str(type)]
    return "__dataclass_fields__" not in vars(cls) and any(not name.startswith("_") for name in named)
