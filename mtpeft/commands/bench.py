"""``mtpeft bench``: methods x tasks x seeds at one budget, and the table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from mtpeft.bench.identity import remember, remember_data
from mtpeft.bench.runner import Comparison
from mtpeft.bench.table import failures, markdown, rows, table
from mtpeft.commands.output import print_json, terminal
from mtpeft.files import write_file
from mtpeft.names import visible


def run(
    recipe: Path,
    *,
    out: Path | None,
    workers: int,
    settings: Sequence[str],
    table_only: bool,
    pictures: bool,
    json: bool,
) -> None:
    """Make what is missing, and print the table; ``table.md`` in the folder has it too.

    Args:
        out: where records are kept; ``runs/bench-RECIPE`` where not given.
        workers: trainings at a time.
        table_only: train nothing.
        pictures: draw some test samples for each run of the first seed that is tested, below ``pictures``.

    Raises:
        MtpeftError: for a plan that cannot be understood, or a folder with records of another one or of other data.
        KeyboardInterrupt: with everything kept that was finished.
    """
    folder = out or Path("runs") / f"bench-{recipe.stem}"
    comparison = Comparison(recipe, folder, settings, _say, pictures=pictures)
    remember(comparison.config, folder, recipe)
    if not table_only:
        remember_data(comparison.config, folder)
        comparison.run(workers, max(1, torch.get_num_threads() // workers))
    write_file(folder / "table.md", markdown(comparison).encode())
    found = rows(comparison)
    if json:
        rest = {"failed": failures(comparison), "missing": comparison.missing()}
        print_json({"folder": str(folder), "rows": [asdict(row) for row in found], **rest})
        return
    print(table(comparison, found).render(terminal()))
    for what, items in (("failed", failures(comparison)), ("not run", comparison.missing())):
        if items:
            print(f"\n{what}", *map(visible, items), sep="\n  ")
    print(f"\ntable  {folder / 'table.md'}")


def _say(text: str) -> None:
    print(visible(text), file=sys.stderr, flush=True)
