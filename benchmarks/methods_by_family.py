"""Which method works on which family: ``python benchmarks/methods_by_family.py [METHOD...]`` writes the table anew.

With methods named, only their rows are worked out again. Every cell is tried on the zoo's tiny random model: the
method is attached, trained for a step and, where it says that it merges, merged with parts that have moved.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from mtpeft.errors import NotApplicable
from mtpeft.plugins import registry
from mtpeft.testing import zoo
from mtpeft.testing.case import Case, make_method
from mtpeft.testing.checks import refused
from mtpeft.testing.merging_and_saving import refusal
from mtpeft.testing.training import train

TABLE = Path(__file__).parent / "results" / "methods_by_family.md"
HEAD = """# Methods by family

Written by `python benchmarks/methods_by_family.py`; a test holds every cell to what happens. Each family is the zoo's
tiny random timm model, each method is tried with its defaults.

- `merges`: it attaches, trains, and folds into plain timm weights.
- `works`: it attaches and trains; it stays beside the backbone.
- `refuses`: it does not attach; the sentence stands below.
"""
MERGES, WORKS, REFUSES = "merges", "works", "refuses"


@dataclass(frozen=True)
class Outcome:
    """What happens to a method on a family, and the sentence of what is refused there (attaching, or merging)."""

    word: str
    sentence: str = ""


Table = dict[tuple[str, str], Outcome]
SMALLER: dict[str, dict[str, Any]] = {"ranpac": {"projection": 64}}
"""Settings of methods that take minutes at their published size, and sit where they would at that."""


def outcome(method: str, family: str) -> Outcome:
    """Try it.

    Raises:
        ArithmeticError: if the loss of a training step is not finite.
    """
    name, made = make_method(method, SMALLER.get(method, {}))
    case = Case(name, made, family)
    error = refused(case)
    if error is not None:
        return Outcome(REFUSES, error.message)
    host = case.host(("a", "b"))
    losses = train(case, host, ["a", "b"], steps=1)
    if not all(map(isfinite, losses)):
        raise ArithmeticError(f"{method} on {family}: the loss is {losses[0]}")
    if not made.declares.mergeable:
        return Outcome(WORKS)
    case.randomize(host)
    error = refusal(partial(host.merged_state, "a"), NotApplicable)
    return Outcome(MERGES) if error is None else Outcome(WORKS, error.message)


def render(table: Table) -> str:
    """The table as Markdown."""
    methods, families = sorted({m for m, _ in table}), [f for f in zoo() if any(f == g for _, g in table)]
    lines = [HEAD, _row(["method", *families]), _row(["---"] * (len(families) + 1))]
    lines += [_row([m, *(table[m, f].word for f in families)]) for m in methods]
    lines += ["", "## What is refused, and why", "", _row(["method", "families", "refused", "sentence"])]
    lines += [_row(["---"] * 4)]
    for method in methods:
        grouped: dict[Outcome, list[str]] = {}
        for family in families:
            if table[method, family].sentence:
                grouped.setdefault(table[method, family], []).append(family)
        lines += [_row([method, ", ".join(where), _what(o.word), o.sentence]) for o, where in grouped.items()]
    return "\n".join(lines) + "\n"


def parse(text: str) -> Table:
    """The table that `render` wrote."""
    rows = [
        [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in text.splitlines()
        if line.startswith("| ") and not line.startswith("| ---")
    ]
    split = next(index for index, row in enumerate(rows) if row[1] == "families")
    families = rows[0][1:]
    table = {(row[0], f): Outcome(word) for row in rows[1:split] for f, word in zip(families, row[1:], strict=True)}
    for method, where, _, sentence in rows[split + 1 :]:
        for family in where.split(", "):
            table[method, family] = Outcome(table[method, family].word, sentence)
    return table


def written() -> Table:
    """The committed table; empty where there is none."""
    return parse(TABLE.read_text()) if TABLE.exists() else {}


def update(methods: Iterable[str]) -> Table:
    """The committed table with the rows of ``methods`` worked out anew, and only registered methods in it."""
    known = registry("methods")
    table = {key: value for key, value in written().items() if key[0] in known and key[1] in zoo()}
    for method in methods:
        for family in zoo():
            table[method, family] = outcome(method, family)
        print(method, {f: o.word for (m, f), o in table.items() if m == method}, file=sys.stderr)
    return table


def _what(word: str) -> str:
    return "attaching" if word == REFUSES else "merging"


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main() -> None:
    torch.set_num_threads(1)
    methods = sys.argv[1:] or sorted(registry("methods"))
    TABLE.parent.mkdir(exist_ok=True)
    for method in methods:  # what is done stays done
        TABLE.write_text(render(update([method])))


if __name__ == "__main__":
    main()
