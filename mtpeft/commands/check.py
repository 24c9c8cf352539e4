"""``mtpeft check METHOD|PACKAGE``: the conformance kit from the command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from mtpeft.commands.output import print_json, print_table
from mtpeft.errors import MtpeftError, UsageError, did_you_mean
from mtpeft.names import visible, visible_lines
from mtpeft.plugins import registry
from mtpeft.testing import CheckFailed, method_checks
from mtpeft.testing.case import make_method
from mtpeft.testing.checks import FAMILIES, Check, refused

COLUMNS = ("method", "family", "scope", "result", "failed")


def run(name: str, *, families: Sequence[str], compile: bool, json: bool) -> None:
    """Run the kit on a method, or on every method of a package, and print a row for each family and scope.

    Raises:
        UsageError: for a name that is neither, or an unknown family.
        MtpeftError: if a check fails; the table and the reasons are printed before.
    """
    torch.set_num_threads(1)  # the zoo's models are so small that threads wait for each other
    rows: list[dict[str, Any]] = []
    for method in methods_of(name):
        rows += checked(method, families or FAMILIES, compile)
    if json:
        print_json({"checks": rows})
    else:
        print_table(COLUMNS, rows)
        for row in rows:
            for reason in row["reasons"]:
                print(visible_lines(reason), file=sys.stderr)
    failed = sum(len(row["failed"]) for row in rows)
    if failed:
        raise MtpeftError(
            f"{failed} of {sum(row['checks'] for row in rows)} checks failed", hint="the reasons stand above"
        )


def methods_of(name: str) -> list[str]:
    """A method's id, or the ids that a package brings."""
    entries = registry("methods")
    if name in entries:
        return [name]
    found = [entry.id for entry in entries.values() if name in (entry.distribution, entry.plugin)]
    if not found:
        known = {*entries, *(entry.distribution for entry in entries.values() if entry.distribution)}
        raise UsageError(f'"{name}" is neither a method nor a package with methods', hint=did_you_mean(name, known))
    return found


def checked(method: str, families: Sequence[str], compile: bool) -> list[dict[str, Any]]:
    """One row for each family and scope: how many checks ran, and which failed with what reason.

    A method that cannot be built with its defaults has one row.
    """
    try:
        make_method(method, {})
    except (MtpeftError, CheckFailed) as error:
        return [_unbuilt(method, " ".join(str(error).split()))]
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    checks = list(method_checks(method, families, slow=compile))
    console = Console(stderr=True)
    for check in track(
        checks, escape(visible(method)), console=console, transient=True, disable=not console.is_terminal
    ):
        case = check.case
        row = rows.setdefault(
            (case.family, case.method.scope),
            {
                "method": method,
                "family": case.family,
                "scope": case.method.scope,
                "checks": 0,
                "failed": [],
                "reasons": [],
            },
        )
        reason = check.failure()
        row["checks"] += 1
        if reason:
            row["failed"].append(check.name)
            row["reasons"].append(reason)
        row["result"] = _result(row, check)
    return list(rows.values())


def _unbuilt(method: str, reason: str) -> dict[str, Any]:
    row = {"method": method, "family": None, "scope": None, "checks": 1}
    return row | {"failed": ["builds_with_defaults"], "reasons": [f"{method}: {reason}"], "result": "1 of 1 fail"}


def _result(row: dict[str, Any], check: Check) -> str:
    if row["failed"]:
        return f"{len(row['failed'])} of {row['checks']} fail"
    if check.name == "refuses_in_one_sentence":
        error = refused(check.case)
        return f"refuses: {error.message}" if error else "refuses"
    return f"passes {row['checks']}"
