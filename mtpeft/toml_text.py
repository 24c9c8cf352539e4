"""TOML of others to plain values, in time linear in its length."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from mtpeft.errors import UsageError
from mtpeft.files import open_regular

_DEEPEST = 64
"""Tables and lists within each other, in a file of settings: more is no recipe."""
_TOML_TEXT = re.compile(
    r'''
    """ (?: \\.? | [^\\] )*? (?: """ | \Z )  |  '{3} .*? (?: '{3} | \Z )
    | " (?: \\[^\n] | [^"\\\n] )* "?  |  ' [^'\n]* '?  |  \# [^\n]*
    ''',
    re.DOTALL | re.VERBOSE,
)
"""Texts and comments of TOML. One that never ends is taken to the end, or trying it again would take square time."""
_BETWEEN_KEYS = re.compile(r"[=\n,{}\[\]]")


def read_toml(path: Path) -> dict[str, Any]:
    """
    Raises:
        UsageError: if the file is absent, or no TOML that could be a recipe.
    """
    try:
        with open_regular(path) as file:
            return parse_toml(file.read().decode("utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"the recipe {path} does not exist", hint="give a TOML file, or --tasks and --method"
        ) from None
    except (ValueError, OSError) as error:  # ValueError: no TOML, no UTF-8, a NUL byte in the path
        if path.is_dir():
            raise UsageError(
                f"the recipe {path} is a folder", hint=f"to resume a run: mtpeft train --resume --out {path}"
            ) from None
        raise UsageError(
            f"the recipe {path} cannot be read: {error}", hint="recipes are TOML: https://toml.io"
        ) from None


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML text, in time linear in its length.

    Raises:
        ValueError: for no TOML, for more than 64 tables or lists within each other, and for whole numbers of more than
            64 bits, for which TOML has no place.
    """
    _refuse_long_keys(text)
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError:  # Python reads no number of more than 4,300 digits
        raise ValueError("it has a whole number of more than 64 bits") from None
    _refuse_extremes(tree)
    return tree


def _refuse_long_keys(text: str) -> None:
    """A dotted key of n parts takes the parser n squared steps. Outside of texts and comments, dots stand in keys."""
    for piece in _BETWEEN_KEYS.split(_TOML_TEXT.sub('""', text)):
        if piece.count(".") > _DEEPEST:
            raise ValueError(f"it has a key of {piece.count('.') + 1} parts")


def _refuse_extremes(tree: Any) -> None:
    waiting = [(tree, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > _DEEPEST:
            raise ValueError("it is nested too deeply")
        if isinstance(value, dict | list):
            waiting += [(item, depth + 1) for item in (value.values() if isinstance(value, dict) else value)]
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError("it has a whole number of more than 64 bits")
