"""``mtpeft report``: what runs learned, forgot and cost, from their results alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mtpeft.commands.output import print_json, terminal
from mtpeft.evaluation import summarize
from mtpeft.reports import compare, render
from mtpeft.training.run_files import read_results


def run(runs: Sequence[Path], *, json: bool) -> None:
    """Print the report of a run, or of several side by side.

    Args:
        runs: run folders, or ``results.json`` files.

    Raises:
        MtpeftError: if one has no results, or they are damaged.
    """
    read = [(str(path), read_results(path)) for path in runs]
    if json:
        summaries = {name: summarize(matrix) for name, matrix in read}
        print_json(summaries[str(runs[0])] if len(runs) == 1 else summaries)
    elif len(read) == 1:
        print(render(read[0][1].to_json(), terminal()))
    else:
        print(compare([(name, matrix.to_json()) for name, matrix in read], terminal()))
