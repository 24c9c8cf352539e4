"""The conformance kit, every method on every family: ``python benchmarks/conformance.py [METHOD...] [--workers 2]``.

A cell whose records are in `results/conformance.jsonl` is not run again, unless its method is named: what a method or
the core is changed in, is named anew. Writes `results/conformance.md`, and ends with 1 where a check fails.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import timm
import torch
from step_table import table

from mtpeft.commands.check import checked
from mtpeft.plugins import registry
from mtpeft.testing import zoo

RESULTS = Path(__file__).with_name("results")
RECORDS, PAGE = RESULTS / "conformance.jsonl", RESULTS / "conformance.md"
COMPILED = "vit"
INTRODUCTION = """\
# The conformance kit, everywhere

Every method with its defaults on the zoo's tiny random model of each family, in both scopes: the number of checks that
pass; `refuses` where the method does not attach (one sentence, checked too). On `{compiled}` the kit compiles each into
one graph besides. torch {torch}, timm {timm}. Made by `python benchmarks/conformance.py`, which is `make matrix`.

{checks:,} checks, of which {failed}; {run} cells were run.
"""
Cell = tuple[str, str]
Rows = list[dict[str, Any]]


def run(cell: Cell) -> Rows:
    """One row for each scope of a method on a family."""
    torch.set_num_threads(1)
    method, family = cell
    return checked(method, [family], compile=family == COMPILED)


def read() -> dict[Cell, Rows]:
    """What was run before, a cell in each line; one that was cut off is dropped."""
    found: dict[Cell, Rows] = {}
    for line in RECORDS.read_text("utf-8").splitlines(keepends=True) if RECORDS.exists() else []:
        if line.endswith("\n"):
            rows = json.loads(line)
            found[rows[0]["method"], rows[0]["family"]] = rows
    return found


def write(found: dict[Cell, Rows], cells: Iterable[Cell]) -> None:
    lines = [json.dumps(found[cell]) + "\n" for cell in cells if cell in found]
    RECORDS.write_text("".join(lines), "utf-8")


def measure(found: dict[Cell, Rows], missing: Sequence[Cell], workers: int) -> None:
    """Run the cells that are missing; each is kept as soon as it is done."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context) as pool, RECORDS.open("a", encoding="utf-8") as file:
        jobs = {pool.submit(run, cell): cell for cell in missing}
        for job in as_completed(jobs):
            found[jobs[job]] = job.result()
            file.write(json.dumps(job.result()) + "\n")
            file.flush()
            print(*jobs[job], *(row["result"] for row in job.result()), sep="  ", file=sys.stderr)


def report(found: dict[Cell, Rows]) -> str:
    """The page."""
    methods, families = sorted({method for method, _ in found}), [f for f in zoo() if any(f == g for _, g in found)]
    rows = [row for cell in found.values() for row in cell]
    failed = [row for row in rows if row["failed"]]
    text = INTRODUCTION.format(
        compiled=COMPILED,
        torch=torch.__version__,
        timm=timm.__version__,
        checks=sum(row["checks"] for row in rows),
        run=f"{sum(map(bool, found.values())):,} of {len(found):,}",
        failed=f"{sum(len(row['failed']) for row in failed)} fail, and stand below" if failed else "none fails",
    )
    cells = [[method, *(_cell(found.get((method, family), [])) for family in families)] for method in methods]
    parts = [text, table(["method", *families], cells)]
    if failed:
        parts += ["## What fails\n", "\n".join(f"- {_oneline(reason)}" for row in failed for reason in row["reasons"])]
        parts[-1] += "\n"
    return "\n".join(parts)


def _cell(rows: Rows) -> str:
    if not rows:
        return "not run"
    passed = sum(row["checks"] - len(row["failed"]) for row in rows)
    if any(row["failed"] for row in rows):
        return f"**{passed} of {sum(row['checks'] for row in rows)}**"
    return "refuses" if all(row["result"].startswith("refuses") for row in rows) else str(passed)


def _oneline(reason: str) -> str:
    return " ".join(reason.split())[:300]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    cells = [(method, family) for method in sorted(registry("methods")) for family in zoo()]
    found = {cell: rows for cell, rows in read().items() if cell in cells and cell[0] not in options.methods}
    write(found, cells)
    measure(found, [cell for cell in cells if cell not in found], options.workers)
    write(found, cells)
    PAGE.write_text(report({cell: found.get(cell, []) for cell in cells}), "utf-8")
    sys.exit(any(row["failed"] for rows in found.values() for row in rows))


if __name__ == "__main__":
    main()
