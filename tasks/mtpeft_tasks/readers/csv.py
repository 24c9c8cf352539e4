"""``csv:PATH``: classification from a table of images: CSV, TSV, or Parquet where pyarrow is installed.

PATH is a table, or a folder with one table or with ``{train,val,test}.{csv,tsv,parquet}``. The columns:

- ``path``, relative to the table's folder or to a folder of images in it;
- ``label``: the name of a class or its position in ``classes.txt``; several are parted by ``;`` or ``|``. Without this
  column every further one is a class and holds 0 or 1 (with ``?classes=``, those at least);
- ``split``, in a single table: ``train``, ``val`` or ``test``. What is missing is held out of the training images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mtpeft.api import SPLITS, DataError, UsageError, did_you_mean
from mtpeft_tasks.readers import files
from mtpeft_tasks.readers.labels import (
    SEPARATORS,
    Entry,
    Files,
    Found,
    LabelReader,
    class_names,
    image_in,
    image_root,
    labels_of,
)
from mtpeft_tasks.readers.splits import by_split, split_of
from mtpeft_tasks.readers.table import DELIMITERS, Row, Table, read_table

_MARKS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


@dataclass
class Csv(LabelReader):
    """Classification from a table of paths and labels: CSV, TSV or Parquet.

    Attributes:
        path: the column of paths.
        label: the column of labels.
        split: the column of splits.
        images: the folder that paths are relative to; empty to look for it.
        suffix: what paths lack at their end, e.g. ``.jpg``.
        separators: what parts several labels in a cell; empty where a cell is one label.
        delimiter: what parts the cells of a line; empty for a comma, in ``.tsv`` a tab.
    """

    gives: ClassVar[tuple[str, ...]] = ("label", "labels")

    path: str = "path"
    label: str = "label"
    split: str = "split"
    images: str = ""
    suffix: str = ""
    separators: str = SEPARATORS
    delimiter: str = ""

    def __post_init__(self) -> None:
        if len(self.delimiter) > 1:
            raise UsageError(f'delimiter: "{self.delimiter}" is not one character', hint="for example ?delimiter=;")

    def find(self, path: str) -> Found:
        place = files.existing(path)
        tables = {name: self._table(file) for name, file in _tables(place).items()}
        names = [row.cells[self.path] + self.suffix for table in tables.values() for row in table.rows]
        if not names:
            raise DataError(f'"{place}" has no rows', hint=f"write a line for each image: {self.path},{self.label}")
        root = place if place.is_dir() else place.parent
        base = image_root(root, self.images, names)
        marked = {name: self._class_columns(table) for name, table in tables.items()}
        splits: dict[str, list[Entry]] = {"train": []}
        for name, table in tables.items():
            for row in table.rows:
                found = self.attempt(self._entry, base, name, row, marked[name])
                if found is not None:
                    splits.setdefault(found[0], []).append(found[1])
        columns = tuple(dict.fromkeys(column for each in marked.values() for column in each))
        return Found(Files(base), splits, columns or class_names(root), root / "classes.txt")

    def recognises(self, path: Path) -> bool:
        """A table, or a folder with one, or with one for each split."""
        if path.is_dir():
            return bool(_in_folder(path))
        return path.is_file() and path.suffix.lower() in DELIMITERS

    def _table(self, file: Path) -> Table:
        table = read_table(file, self.report, delimiter=self.delimiter)
        table.require(self.path, "path")
        for option, column, usual in (("label", self.label, "label"), ("split", self.split, "split")):
            if column != usual:
                table.require(column, option)
        return table

    def _class_columns(self, table: Table) -> tuple[str, ...]:
        """The columns that are classes; none where there is a column of labels."""
        if self.label in table.columns or not table.rows:
            return ()
        rest = tuple(column for column in table.columns if column not in (self.path, self.split))
        marked = tuple(column for column in rest if column in self.classes) or rest
        if not marked or any(table.rows[0].cells[column].lower() not in _MARKS for column in marked):
            table.require(self.label, "label")
        return marked

    def _entry(self, base: Path, name: str, row: Row, marked: tuple[str, ...]) -> tuple[str, Entry]:
        """The split and entry of a row."""
        path = row.cells[self.path] + self.suffix if row.cells[self.path] else ""
        image_in(base, path, row.where)
        if marked:
            labels = tuple(column for column in marked if _is_marked(row, column))
        else:
            labels = labels_of(row.cells[self.label], row.where, self.separators)
        return name or self._split(row), Entry(path, labels, row.where)

    def _split(self, row: Row) -> str:
        if self.split not in row.cells:
            return "train"
        text = row.cells[self.split]
        if (split := split_of(text)) is not None:
            return split
        message = f'{row.where}: {self.split} "{row.cells[self.split]}" is no split'
        raise DataError(message, hint=did_you_mean(text.lower(), SPLITS))


def _tables(place: Path) -> dict[str, Path]:
    """The tables by split; the name of a single one is empty."""
    if not place.is_dir():
        return {"": place}
    if tables := _in_folder(place):
        return tables
    hint = "expected train.csv, perhaps val.csv and test.csv, or one table; or give the path of the table itself"
    raise DataError(f'"{place}" has no table, or several', hint=hint)


def _in_folder(folder: Path) -> dict[str, Path]:
    visible = (file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    found = sorted(file for file in visible if file.suffix.lower() in DELIMITERS)
    named = by_split(found)
    if "train" in named:
        return named
    return {"": found[0]} if len(found) == 1 else {}


def _is_marked(row: Row, column: str) -> bool:
    text = row.cells[column]
    if text.lower() in _MARKS:
        return _MARKS[text.lower()]
    message = f'{row.where}: {column} "{text}" is neither 0 nor 1'
    raise DataError(message, hint="a column of a class holds 0 or 1; ?classes= names those that are classes")
