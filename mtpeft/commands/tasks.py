"""``mtpeft tasks``: what can be learned, and from which data."""

from __future__ import annotations

from typing import Any

from mtpeft.commands.output import first_line, print_json, print_one, print_table
from mtpeft.errors import MtpeftError
from mtpeft.plugins import Entry, registry, resolve


def run(name: str | None, *, json: bool) -> None:
    """Print task types with their metrics, and the readers of data; or one type with its settings."""
    if name is not None:
        print_one(resolve("tasks", name), _task(registry("tasks")[name]), ("metric", "unit", "package"), json=json)
        return
    tasks = [_task(entry) for entry in registry("tasks").values()]
    readers = [_reader(entry) for entry in registry("readers").values()]
    if json:
        print_json({"tasks": tasks, "readers": readers})
        return
    print_table(("type", "metric", "unit", "package", "idea"), tasks)
    print()
    print_table(("reader", "gives", "package", "reads"), readers)


def _task(entry: Entry) -> dict[str, Any]:
    row = {"type": entry.id, "package": entry.distribution, "version": entry.version, "error": None}
    try:
        cls = resolve("tasks", entry.id)
    except MtpeftError as error:
        return row | {"metric": None, "unit": None, "higher_is_better": None, "idea": "", "error": error.message}
    declared = {"metric": cls.metric_name, "unit": cls.unit, "higher_is_better": cls.higher_is_better}
    return row | declared | {"idea": first_line(cls)}


def _reader(entry: Entry) -> dict[str, Any]:
    row = {"reader": entry.id, "package": entry.distribution, "version": entry.version, "error": None}
    try:
        cls = resolve("readers", entry.id)
        return row | {"gives": list(cls.gives), "reads": first_line(cls)}
    except MtpeftError as error:
        return row | {"gives": [], "reads": "", "error": error.message}
