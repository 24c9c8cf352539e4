"""``list:PATH``: classification from list files.

Layouts, by what is found in the folder PATH:

- VTAB-1k: ``train800.txt``, ``val200.txt``, ``train800val200.txt``, ``test.txt``. ``?protocol=800`` tunes on 800 and
  validates on 200; ``?protocol=1000`` trains on all 1000, and its validation split is a part of them: for a last
  training, not for choosing anything.
- FGVC as in the splits of visual prompt tuning: ``train.json``, ``val.json``, ``test.json``, each
  ``{"relative/path.jpg": class}``.
- ``train.txt``, ``val.txt``, ``test.txt``.
- Lists of other names: ``?train=clipart_train.txt&test=clipart_test.txt`` (``val`` too), relative to PATH.

A line is ``relative/path label``, parted by a tab or the last space; a label is a name or a position in
``classes.txt``, and several are parted by ``;`` or ``|`` (in json, a list). Paths are relative to PATH or to a folder
of images in it. PATH may be a single list, too. Missing splits are held out of the training images.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from mtpeft.api import DataError, UsageError
from mtpeft_tasks.readers import files
from mtpeft_tasks.readers.labels import (
    SEPARATORS,
    Entry,
    Files,
    Found,
    LabelReader,
    class_names,
    holds,
    image_in,
    image_root,
    labels_of,
)
from mtpeft_tasks.readers.splits import split_files

_VTAB = {
    800: {"train": "train800.txt", "val": "val200.txt", "test": "test.txt"},
    1000: {"train": "train800val200.txt", "val": "val200.txt", "test": "test.txt"},
}
_FIRST = re.compile(r'\s*\{\s*"[^"]+\.(jpe?g|png|bmp|gif|tiff?|webp|ppm|pgm|jfif|avif|jp2|heic)"\s*:', re.IGNORECASE)


@dataclass
class ListFiles(LabelReader):
    """Classification from list files: VTAB-1k's, FGVC's, or lines "path label".

    Attributes:
        protocol: of VTAB-1k: 800 to tune on train800 and val200, 1000 to train on both.
        train, val, test: the lists of the splits, relative to PATH, where they have other names.
        images: the folder that paths are relative to; empty to look for it.
        separators: what parts several labels; empty where each line has one.
    """

    gives: ClassVar[tuple[str, ...]] = ("label", "labels")

    protocol: Literal[800, 1000] = 800
    train: str = ""
    val: str = ""
    test: str = ""
    images: str = ""
    separators: str = SEPARATORS

    def __post_init__(self) -> None:
        if (self.val or self.test) and not self.train:
            raise UsageError("a list is named, but not that of the training split", hint="add ?train=FILE")

    def find(self, path: str) -> Found:
        place = files.existing(path)
        root = place if place.is_dir() else place.parent
        lists = self._lists(place)
        listed = {name: self._listed(file) for name, file in lists.items()}
        base = image_root(root, self.images, [entry.path for entries in listed.values() for entry in entries])
        splits = {}
        for name, entries in listed.items():
            tried = (self.attempt(_there, base, entry) for entry in entries)
            splits[name] = [entry for entry in tried if entry is not None]
        nested = lists["train"].name == _VTAB[1000]["train"]
        return Found(Files(base), splits, class_names(root), root / "classes.txt", nested)

    def recognises(self, path: Path) -> bool:
        """VTAB-1k's or FGVC's files, or a list ``train.txt`` of paths with labels."""
        return (path / "train800.txt").is_file() or _is_json_list(path / "train.json") or _is_list(path / "train.txt")

    def _lists(self, place: Path) -> dict[str, Path]:
        """The list of each split that there is."""
        if place.is_file():
            return {"train": place}
        if self.train:
            named = {"train": self.train, "val": self.val, "test": self.test}
            return {split: files.inside(place, name, f"?{split}={name}") for split, name in named.items() if name}
        if self.protocol == 1000 or (place / _VTAB[800]["train"]).is_file():
            for name in _VTAB[self.protocol].values():
                if not (place / name).is_file():
                    raise DataError(f'"{place}" has no "{name}"', hint=f"?protocol={self.protocol} reads it")
            return {split: place / name for split, name in _VTAB[self.protocol].items()}
        for suffix in (".json", ".txt"):
            if "train" in (lists := split_files(place, suffix)):
                return lists
        raise DataError(f'"{place}" has no lists', hint="expected train800.txt, train.json or train.txt")

    def _listed(self, file: Path) -> list[Entry]:
        """The entries of a list; whether their images are there is not looked at."""
        is_json = file.suffix.lower() == ".json"
        items: list[Any] = _json(file) if is_json else files.read_lines(file)
        if not items:
            raise DataError(f'list "{file}" is empty', hint='write a line "path label" for each image')
        parse: Callable[[Any, str, str], Entry] = _item if is_json else _line
        places = (f'"{file}", entry {number}' for number in range(1, len(items) + 1))
        tried = (self.attempt(parse, *pair, self.separators) for pair in zip(items, places, strict=True))
        return [entry for entry in tried if entry is not None]


class _Pairs(list):
    """The items of a json object, in which a name may stand twice."""


def _json(file: Path) -> _Pairs:
    try:
        found = json.loads(files.read_bytes(file).decode("utf-8-sig"), object_pairs_hook=_Pairs)
    except UnicodeDecodeError:
        raise DataError(f'list "{file}" is not UTF-8 text', hint="save it as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f'list "{file}" is not valid json: {error}', hint="repair the file") from None
    if not isinstance(found, _Pairs):
        raise DataError(f'list "{file}" is no json object', hint='write {"relative/path.jpg": class, ...}')
    return found


def _item(item: tuple[str, Any], where: str, separators: str) -> Entry:
    """An item ``(path, class or classes)`` of a json list."""
    path, value = item
    labels = value if isinstance(value, list) and not isinstance(value, _Pairs) else [value]
    for label in labels:
        if isinstance(label, bool) or not isinstance(label, int | str):
            message = f'{where}: "{path}" has the class {json.dumps(label)[:40]}, which is neither a number nor a name'
            raise DataError(message, hint="give the number or name of a class")
    named = (name for label in labels for name in labels_of(str(label), where, separators))
    return Entry(path, tuple(dict.fromkeys(named)), where)


def _line(line: str, where: str, separators: str) -> Entry:
    """A line ``path label``."""
    path, tab, label = line.rpartition("\t")
    if not tab:
        path, _, label = line.rpartition(" ")
    if not path.strip():
        hint = "write both, parted by a tab where the label has spaces"
        raise DataError(f'{where}: "{line}" is no path with a label', hint=hint)
    return Entry(path.strip(), labels_of(label, where, separators), where)


def _there(base: Path, entry: Entry) -> Entry:
    image_in(base, entry.path, entry.where)
    return entry


def _is_json_list(file: Path) -> bool:
    return bool(_FIRST.match(_beginning(file)))


def _is_list(file: Path) -> bool:
    line = _beginning(file).partition("\n")[0].strip()
    try:
        entry = _line(line, "", SEPARATORS)
        return holds(image_root(file.parent, "", [entry.path]), entry.path)
    except DataError:
        return False


def _beginning(file: Path) -> str:
    """The first characters of a text file; empty for any other."""
    return files.beginning(file, 4096).decode("utf-8-sig", "replace")
