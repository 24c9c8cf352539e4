"""``mtpeft report``: what runs learned, forgot and cost, from their results alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mtpeft.commands.output import print_json, terminal
from mtpeft.evaluation import add_references, summarize
from mtpeft.reports import compare, render
from mtpeft.training.run_files import read_results


def run(runs: Sequence[Path], *, baselines: Sequence[Path] = (), json: bool) -> None:
    """Print the report of a run, or of several side by side.

    Args:
        runs: run folders, or ``results.json`` files.
        baselines: runs of one stage: of one task, for its baseline, or of several, for their joint bound.

    Raises:
        MtpeftError: if one has no results, they are damaged, or a baseline is none.
    """
    read = [(str(path), read_results(path)) for path in runs]
    references = {str(path): read_results(path) for path in baselines}
    for _, matrix in read:
        add_references(matrix, references)
    if json:
        summaries = {name: summarize(matrix) for name, matrix in read}
        print_json(summaries[str(runs[0])] if len(runs) == 1 else summaries)
    elif len(read) == 1:
        print(render(read[0][1].to_json(), terminal()))
    else:
        print(compare([(name, matrix.to_json()) for name, matrix in read], terminal()))
