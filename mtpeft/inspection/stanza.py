"""What to write into a recipe to train on a data set. Pure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import tomli_w

from mtpeft.addresses import existing, relative
from mtpeft.inspection.choice import ReaderChoice
from mtpeft.inspection.survey import Survey


def stanza(found: Survey, base: Path | None = None) -> str:
    """A recipe's table of a task on this data, below a comment that counts it.

    Args:
        base: the folder of the recipe, which a relative path is relative to; the current one by default.
    """
    counts = ", ".join(f"{len(split.data):,} {name}" for name, split in found.splits.items())
    classes = f"{len(found.classes)} classes" if found.classes else "no classes"
    table = {"type": found.type, "data": _placed(found.choice, base)}
    return f"# {classes}; images: {counts or 'none'}\n" + tomli_w.dumps({"tasks": {found.choice.name: table}})


def _placed(choice: ReaderChoice, base: Path | None) -> str:
    """The data as the recipe names it; what is no path in the file system stays as it is."""
    place = existing(choice.address.path)
    if base is None or place is None or place.is_absolute():
        return choice.data
    return str(replace(choice.address, path=relative(str(place.resolve()), base.resolve())))
