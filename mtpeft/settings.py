"""Strict settings: plain values to a dataclass, with errors that name the dotted key and where it came from.

A field's annotation says what it takes, `Count` and the like with a range.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import Field, PydanticUserError, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticSerializationError, to_json

from mtpeft.errors import UsageError, did_you_mean
from mtpeft.names import brief
from mtpeft.toml_text import parse_toml

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
Origin = Callable[[str], str]

Count = Annotated[int, Field(ge=1, description="a whole number of at least 1")]
Whole = Annotated[int, Field(ge=0, description="a whole number of at least 0")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, description="a number above 0")]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False, description="a number of at least 0")]
Fraction = Annotated[float, Field(ge=0, lt=1, description="a number from 0 to below 1")]
Share = Annotated[float, Field(ge=0, le=1, description="a number from 0 to 1")]

_UNITS = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
Bytes = Annotated[
    str, Field(pattern=rf"^\d+(\.\d+)?\s*({'|'.join(_UNITS)})$", description='a size such as "5MB" or "512 KiB"')
]


def byte_count(size: str) -> int:
    """A `Bytes` setting as a number.

    >>> byte_count("5MB"), byte_count("200 kB"), byte_count("1.5 KiB")
    (5000000, 200000, 1536)
    """
    number = re.match(r"[\d.]+", size)
    amount = number.group() if number else "0"
    return int(float(amount) * _UNITS[size[len(amount) :].strip()])


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
    origin = origin or _unknown
    check_keys(settings, known, where, origin)
    hints = get_type_hints(cls, include_extras=True)
    values = {}
    for name, field in known.items():
        key = _join(where, name)
        if name in settings:
            values[field.name] = checked(hints[field.name], settings[name], key, field.default, origin)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise UsageError(f"{key} is missing", hint=f"{key} takes {_takes(hints[field.name])}")
    return cls(**values)


def check(made: DataclassInstance, where: str) -> None:
    """Hold an instance that was made without `build` to the same types and ranges, where plain values have them.

    Raises:
        UsageError: naming the first field that does not fit.
    """
    hints = get_type_hints(type(made), include_extras=True)
    for field in fields(made):
        value = getattr(made, field.name)
        if field.init and value is not field.default:
            with suppress(PydanticUserError, PydanticSerializationError):  # of a function, say, nothing is known
                checked(hints[field.name], value, _join(where, field.name), field.default)


def check_keys(settings: Mapping[str, Any], known: Iterable[str], where: str, origin: Origin) -> None:
    """Refuse keys that are not known.

    Raises:
        UsageError: naming the first unknown key, with did-you-mean.
    """
    for name in settings:
        if name not in known:
            key = _join(where, name)
            raise UsageError(f"there is no setting {key}{_from(origin(key))}", hint=did_you_mean(name, known))


def listed(cls: type[DataclassInstance]) -> list[dict[str, str]]:
    """The settings there are: ``{"setting": ..., "takes": ..., "default": ...}`` each, in words and as in a recipe.

    ``(none)`` stands for None, and for no default.
    """
    hints, rows = get_type_hints(cls, include_extras=True), []
    for field in fields(cls):
        if field.init:
            default = field.default if field.default_factory is MISSING else field.default_factory()
            said = "(none)" if default in (MISSING, None) else as_toml(default)
            takes = _takes(hints[field.name])
            rows.append({"setting": field.name.removesuffix("_config"), "takes": takes, "default": said})
    return rows


def _unknown(key: str) -> str:
    return ""


def checked(annotation: Any, value: Any, key: str, default: Any = MISSING, origin: Origin = _unknown) -> Any:
    """A value as its annotation takes it, strictly: a list for a tuple, a table for a dataclass, otherwise as it is.

    Args:
        key: dotted name of the setting, for error messages.
        default: named in the hint; None is not.

    Raises:
        UsageError: for another type, or a value out of range.
    """
    table = next((item for item in (annotation, *get_args(annotation)) if is_dataclass(item)), None)
    if isinstance(value, Mapping) and isinstance(table, type):
        return build(table, value, key, origin)
    # JSON mode is what lets strict typing take TOML's arrays for tuples.
    try:
        return _adapter(annotation).validate_json(to_json(value, inf_nan_mode="constants"), strict=True)
    except ValidationError as error:
        # Of a type with alternatives, what got furthest is what was meant.
        message = max(error.errors(), key=lambda found: len(found["loc"]))["msg"]
        known = "" if default in (MISSING, None) else f"; the default is {as_toml(default)}"
        words = isinstance(value, str) and get_origin(annotation) is Literal
        raise UsageError(
            f"{key} = {shown(value)}{_from(origin(key))} does not fit: {_in_words(message)}",
            hint=did_you_mean(value, get_args(annotation)) if words else f"{key} takes {_takes(annotation)}{known}",
        ) from None


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    """Making one takes a hundred times as long as using it; a type that cannot be a key is made each time."""
    return _kept_adapter(annotation) if isinstance(annotation, Hashable) else TypeAdapter(annotation)


@cache
def _kept_adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation)


def _in_words(message: str) -> str:
    """Pydantic names its own types, and of a pattern its regular expression: here one reads what is wrong."""
    if message.startswith("String should match pattern"):
        return "it is none of what there is"
    if message == "Field required":
        return "it should have more items"
    message = message.replace("a valid array", "a list").replace("an object", "a table")
    return re.sub(r"^\w+ should (.*?)( after validation.*)?$", r"it should \1", message)


def as_toml(value: Any) -> str:
    """A value as one would write it in a recipe."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_toml, value))}]"
    if isinstance(value, Mapping):
        items = ", ".join(f"{name} = {as_toml(item)}" for name, item in value.items())
        return f"{{ {items} }}" if items else "{}"
    return str(value)


def shown(value: Any) -> str:
    """A value for a sentence: as in a recipe, in one line, the end of a long one left out."""
    return brief(as_toml(value))


def from_toml(text: str) -> Any:
    """The value of a text as a recipe would have it; a text that is no TOML value stands for itself.

    Raises:
        UsageError: for what TOML has no place for: see `mtpeft.toml_text.parse_toml`.
    """
    try:
        text.encode()  # an argument of bytes that are no text
        tree = parse_toml(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    except ValueError as error:
        raise UsageError(f'"{brief(text)}" is no value: {error}', hint="give a smaller one") from None
    return tree["value"] if list(tree) == ["value"] else text


def _takes(annotation: Any) -> str:
    """A type in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        said = (item.description for item in arguments[1:] if isinstance(item, FieldInfo))
        return next(filter(None, said), None) or _takes(arguments[0])
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
    return brief(f"{where}.{name}" if where else name)


def _from(origin: str) -> str:
    return f" (from {origin})" if origin not in ("", "default") else ""
