"""Strict settings: plain values to a dataclass, with errors that name the dotted key and where it came from."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from mtpeft.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
Origin = Callable[[str], str]

_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", dict: "a table"}


def build(cls: type[T], settings: Mapping[str, Any], where: str = "", origin: Origin | None = None) -> T:
    """An instance of a dataclass from its settings, strictly typed.

    A setting ``NAME`` goes to the field of that name, or to ``NAME_config`` (a field cannot share a method's name).

    Args:
        cls: a dataclass; its fields are the settings there are.
        settings: plain values, as TOML or JSON has them.
        where: dotted key of the table, for error messages, e.g. ``methods.lora``.
        origin: ``origin(key)`` says where a value came from, e.g. `Config.origin`.

    Raises:
        UsageError: for an unknown key (with did-you-mean), a missing one, or a value of a wrong type or range.
    """
    known = {field.name.removesuffix("_config"): field for field in fields(cls) if field.init}
    origin = origin or (lambda key: "")
    check_keys(settings, known, where, origin)
    hints = get_type_hints(cls, include_extras=True)
    values = {}
    for name, field in known.items():
        key = _join(where, name)
        if name in settings:
            values[field.name] = _check(hints[field.name], settings[name], key, origin, field)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise UsageError(f"{key} is missing", hint=f"{key} takes {_takes(hints[field.name])}")
    return cls(**values)


def check_keys(settings: Mapping[str, Any], known: Iterable[str], where: str, origin: Origin) -> None:
    """Refuse keys that are not known.

    Raises:
        UsageError: naming the first unknown key, with did-you-mean.
    """
    for name in settings:
        if name not in known:
            key = _join(where, name)
            raise UsageError(f"there is no setting {key}{_from(origin(key))}", hint=did_you_mean(name, known))


def _check(annotation: Any, value: Any, key: str, origin: Origin, field: Field) -> Any:
    table = next((item for item in (annotation, *get_args(annotation)) if is_dataclass(item)), None)
    if isinstance(value, Mapping) and isinstance(table, type):
        return build(table, value, key, origin)
    # JSON mode is what lets strict typing take TOML's arrays for tuples.
    try:
        return TypeAdapter(annotation).validate_json(to_json(value, inf_nan_mode="constants"), strict=True)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Input ")
        default = "" if field.default in (MISSING, None) else f"; the default is {as_toml(field.default)}"
        raise UsageError(
            f"{key} = {as_toml(value)}{_from(origin(key))} does not fit: it {message}",
            hint=f"{key} takes {_takes(annotation)}{default}",
        ) from None


def as_toml(value: Any) -> str:
    """A value as one would write it in a recipe."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_toml, value))}]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{name} = {as_toml(item)}" for name, item in value.items()) + " }"
    return str(value)


def from_toml(text: str) -> Any:
    """The value of a text as a recipe would have it; a text that is no TOML stands for itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _takes(annotation: Any) -> str:
    """A type in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _takes(arguments[0])
    if origin is Literal:
        return f"one of {', '.join(map(as_toml, arguments))}"
    if origin in (Union, UnionType):
        return " or ".join(_takes(item) for item in arguments if item is not NoneType)
    if origin is tuple and Ellipsis not in arguments:
        return f"[{', '.join(map(_takes, arguments))}]"
    if origin in (list, tuple):
        return f"a list, each {_takes(arguments[0])}"
    if is_dataclass(annotation):
        return f"a table of {', '.join(field.name for field in fields(annotation))}"
    return _WORDS.get(origin or annotation, getattr(annotation, "__name__", str(annotation)))


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _from(origin: str) -> str:
    return f" (from {origin})" if origin not in ("", "default") else ""
