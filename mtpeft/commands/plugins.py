"""``mtpeft plugins``: who brings what, what it cost to load, and what did not."""

from __future__ import annotations

from dataclasses import asdict

from mtpeft.commands.output import print_json, print_table
from mtpeft.plugins import manager

COLUMNS = ("name", "distribution", "version", "state", "seconds", "hooks", "changed", "error")


def run(*, json: bool) -> None:
    """Print every plugin, loaded or not.

    Raises:
        MtpeftError: the first plugin that failed or breaks the contract, after the listing.
    """
    problems = manager().problems()
    rows = [asdict(plugin) for plugin in manager().plugins.values()]
    if json:
        found = [{"error": problem.message, "hint": problem.hint} for problem in problems]
        print_json({"plugins": rows, "problems": found})
    else:
        print_table(COLUMNS, rows)
    if problems:
        raise problems[0]
