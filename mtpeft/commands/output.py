"""Printing: tables for people, JSON for programs; stdout carries data and nothing else."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from json import dumps
from typing import Any

from mtpeft.settings import listed


def print_json(data: Any) -> None:
    """JSON on stdout."""
    print(dumps(data, indent=2, ensure_ascii=False))


def prose(text: str) -> str:
    """A docstring for people: literals in single backticks, and a colon before an indented block."""
    return re.sub(r"``(.+?)``", r"`\1`", text, flags=re.DOTALL).replace("::\n", ":\n")


def first_line(documented: Any) -> str:
    """What a class says of itself in one sentence, as `prose`."""
    return prose(inspect.getdoc(documented) or "").partition("\n")[0]


def print_table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows under columns: drawn by rich on a terminal, aligned plain text elsewhere."""
    lines = [[_cell(row.get(column)) for column in columns] for row in rows]
    if sys.stdout.isatty():
        _draw(columns, lines)
        return
    widths = [max(map(len, cells)) for cells in zip(columns, *lines, strict=True)]
    for cells in (columns, *lines):
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


def print_one(cls: type, row: Mapping[str, Any], declared: Sequence[str], *, json: bool) -> None:
    """One of them: what its class says of itself, what it declares, and its settings."""
    settings = listed(cls)
    if json:
        print_json({**row, "settings": settings})
        return
    for said in filter(None, map(inspect.getdoc, (cls, inspect.getmodule(cls)))):
        print(prose(said), end="\n\n")
    print_table(declared, [row])
    print()
    print_table(("setting", "takes", "default"), settings)


def _draw(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE)
    for index, column in enumerate(columns):
        table.add_column(column, no_wrap=index == 0, overflow="fold")  # a name is copied from here: never cut
    for cells in lines:
        table.add_row(*map(Text, cells))
    Console().print(table)


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
