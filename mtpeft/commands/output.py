"""Printing: tables for people, JSON for programs; stdout carries data and nothing else."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from json import dumps
from typing import TYPE_CHECKING, Any

from mtpeft.names import visible_lines
from mtpeft.reports.table import Table
from mtpeft.settings import listed

if TYPE_CHECKING:
    from rich.console import Console


def print_json(data: Any) -> None:
    """JSON on stdout, in ASCII: it leaves any program and terminal as it is, and carries names that are no Unicode."""
    print(dumps(data, indent=2))


def prose(text: str) -> str:
    """A docstring for people: literals in single backticks, and a colon before an indented block."""
    return re.sub(r"``(.+?)``", r"`\1`", text, flags=re.DOTALL).replace("::\n", ":\n")


def first_line(documented: Any) -> str:
    """What a class says of itself in one sentence, as `prose`."""
    return prose(inspect.getdoc(documented) or "").partition("\n")[0]


def print_table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows under columns: drawn by rich on a terminal, aligned plain text elsewhere."""
    cells: list[Sequence[str]] = [[_cell(row.get(column)) for column in columns] for row in rows]
    print(Table(columns, words=len(columns), rows=cells).render(terminal()))


def terminal() -> Console | None:
    """What draws on stdout, where that is a terminal; rich is imported for one alone."""
    if sys.stdout.isatty():
        from rich.console import Console

        return Console()
    return None


def print_one(cls: type, row: Mapping[str, Any], declared: Sequence[str], *, json: bool) -> None:
    """One of them: what its class says of itself, what it declares, and its settings."""
    settings = listed(cls)
    if json:
        print_json({**row, "settings": settings})
        return
    for said in filter(None, map(inspect.getdoc, (cls, inspect.getmodule(cls)))):
        print(visible_lines(prose(said)), end="\n\n")
    print_table(declared, [row])
    print()
    print_table(("setting", "takes", "default"), settings)


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "-"
    return str(value)
