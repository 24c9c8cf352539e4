"""``mtpeft data PATH``: look at a data set before anyone trains on it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID

from mtpeft.commands.output import print_json, terminal
from mtpeft.errors import DataError, UsageError
from mtpeft.files import write_file
from mtpeft.inspection import Survey, choose, page, stanza, survey
from mtpeft.inspection.survey import Progress as Counted
from mtpeft.names import visible
from mtpeft.reports import render_data
from mtpeft.training.run_files import refuse_existing


def run(data: str, *, type: str, json: bool, page_file: Path | None, recipe: Path | None, seed: int) -> None:
    """Print what a data set is, what is in it and what is wrong with it, and how a recipe names it.

    Args:
        type: the task type to look at it as; by default the first that learns from it.
        page_file: where to write a page of samples.
        recipe: where to write the stanza of a recipe; only where there is no error.

    Raises:
        UsageError: for a path that no reader, or more than one, recognises, or a file that is not to be written.
        DataError: if the data has errors; everything is printed before.
    """
    if page_file is not None and page_file.suffix != ".html":
        raise UsageError(f'"{page_file}" is no page', hint="give a file that ends in .html")
    if recipe is not None:
        refuse_existing(recipe, hint="give another --recipe")
    with _progress() as count:
        found = survey(choose(data, type), seed=seed, progress=count)
    report = found.to_json() | {"recipe": stanza(found)}
    print_json(report) if json else print(render_data(report, terminal()))
    if page_file is not None:
        write_file(page_file, page(found, report["recipe"]).encode())
    _refuse(found)
    if recipe is not None:
        write_file(recipe, stanza(found, recipe.parent).encode())


def _refuse(found: Survey) -> None:
    """
    Raises:
        DataError: if the data has errors.
    """
    if count := len(found.errors):
        errors = "1 error" if count == 1 else f"{count} errors"
        raise DataError(f"{found.choice.data} has {errors}", hint="what to do stands in the report")


@contextmanager
def _progress() -> Iterator[Counted]:
    """A bar for each split, in a terminal."""
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bars:
        made: dict[str, TaskID] = {}

        def count(split: str, done: int, total: int) -> None:
            if split not in made:
                made[split] = bars.add_task(escape(visible(split)), total=total)
            bars.update(made[split], completed=done)

        yield count
