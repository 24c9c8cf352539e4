"""Tables as rows of text: CSV, TSV, and Parquet where pyarrow is installed."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from mtpeft.api import DataError, did_you_mean
from mtpeft_tasks.readers import files

DELIMITERS = {".csv": ",", ".tsv": "\t", ".parquet": ""}
Report = Callable[[DataError], None]


@dataclass(frozen=True)
class Row:
    """One row: its cells by column, and the file and line, for messages."""

    cells: Mapping[str, str]
    where: str


@dataclass(frozen=True)
class Table:
    """A file with its columns and rows."""

    file: Path
    columns: tuple[str, ...]
    rows: list[Row]

    def require(self, column: str, option: str) -> None:
        """Refuse a table without a column.

        Raises:
            DataError: naming the option that would name another.
        """
        if column not in self.columns:
            hint = f"{did_you_mean(column, self.columns)} Another is named with ?{option}=COLUMN."
            raise DataError(f'table "{self.file}" has no column "{column}"', hint=hint)


def read_table(file: Path, report: Report, *, delimiter: str = "") -> Table:
    """Every row of a table.

    Args:
        report: told of each row that cannot be used; it may raise.
        delimiter: of a text; empty for a comma, in ``.tsv`` a tab.

    Raises:
        DataError: where it cannot be read, or has no header.
    """
    try:
        if file.suffix.lower() == ".parquet":
            return _parquet(file)
        with files.opened(file) as content, TextIOWrapper(content, encoding="utf-8-sig", newline="") as text:
            lines = csv.reader(text, delimiter=delimiter or DELIMITERS.get(file.suffix.lower(), ","), strict=True)
            columns = _header(file, next(lines, []))
            return Table(file, columns, list(_rows(file, columns, lines, report)))
    except UnicodeDecodeError:
        raise DataError(f'table "{file}" is not UTF-8 text', hint="save it as UTF-8") from None
    except (csv.Error, OSError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise DataError(f'table "{file}" cannot be read: {reason}', hint="repair the file") from None


def _header(file: Path, cells: list[str]) -> tuple[str, ...]:
    columns = tuple(cell.strip() for cell in cells)
    if not any(columns):
        raise DataError(f'table "{file}" has no header', hint="name its columns in the first line: path,label")
    for column, count in Counter(columns).items():
        if count > 1:
            raise DataError(f'table "{file}" has {count} columns named "{column}"', hint="give each a name of its own")
    return columns


def _rows(file: Path, columns: tuple[str, ...], lines: Any, report: Report) -> Iterator[Row]:
    """The rows of a ``csv.reader`` that have a cell for each column; empty lines are none."""
    for cells in lines:
        where = f'"{file}", line {lines.line_num}'
        if len(cells) == len(columns):
            yield Row(dict(zip(columns, (cell.strip() for cell in cells), strict=True)), where)
        elif any(cell.strip() for cell in cells):
            message = f"{where}: it has {len(cells)} cells, and the header {len(columns)}"
            report(DataError(message, hint="put a cell that holds the delimiter in quotes"))


def _parquet(file: Path) -> Table:
    try:
        from pyarrow import parquet
    except ImportError:
        raise DataError(f'table "{file}" cannot be read without pyarrow', hint="pip install pyarrow") from None
    with files.opened(file) as content:
        read = parquet.read_table(content)
    columns = _header(file, read.column_names)
    cells = zip(*(read.column(column).to_pylist() for column in columns), strict=True)
    rows = (dict(zip(columns, map(_cell, values), strict=True)) for values in cells)
    return Table(file, columns, [Row(row, f'"{file}", row {number}') for number, row in enumerate(rows, 1)])


def _cell(value: Any) -> str:
    """A value as a table of text would have it; several are parted by semicolons."""
    if isinstance(value, list):
        return ";".join(map(_cell, value))
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return str(int(value))  # pandas turns a column of numbers with a missing one into floats
    return "" if value is None else str(value).strip()
