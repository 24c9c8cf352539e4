"""``mtpeft methods``: what there is to adapt with."""

from __future__ import annotations

from typing import Any

from mtpeft.commands.output import first_line, print_json, print_one, print_table
from mtpeft.errors import MtpeftError
from mtpeft.plugins import Entry, registry, resolve

COLUMNS = ("id", "category", "mergeable", "identity", "idea")
SHOWN = ("category", "mergeable", "identity", "families", "paper")


def run(name: str | None, *, json: bool) -> None:
    """Print every registered method with what it declares in its default configuration, or one with its settings."""
    if name is not None:
        print_one(resolve("methods", name), describe(registry("methods")[name]), SHOWN, json=json)
        return
    rows = [describe(entry) for entry in registry("methods").values()]
    if json:
        print_json({"methods": rows})
        return
    print_table(COLUMNS, [{**row, "idea": row["idea"] or row["error"]} for row in rows])


def describe(entry: Entry) -> dict[str, Any]:
    """A method as JSON; ``error`` says why one cannot be used, and is null otherwise."""
    row = {"id": entry.id, "package": entry.distribution, "version": entry.version, "error": None}
    unknown = {"scope": None, "mergeable": None, "identity": None}
    unwritten = {"category": "", "idea": "", "paper": "", "families": ""}
    try:
        return row | _declared(resolve("methods", entry.id))
    except MtpeftError as error:
        return row | unknown | unwritten | {"error": error.message}


def _declared(cls: type) -> dict[str, Any]:
    method = cls()
    declares = method.declares
    return {
        "category": declares.category,
        "scope": method.scope,
        "mergeable": declares.mergeable,
        "identity": declares.identity_at_init,
        "idea": first_line(cls),
        "paper": declares.paper,
        "families": declares.families,
    }
