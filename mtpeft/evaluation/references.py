"""Baselines and joint bounds of a run from the results of other runs: measured, never typed in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mtpeft.errors import UsageError
from mtpeft.evaluation.matrix import ResultMatrix
from mtpeft.score import Score

_HINT = "a baseline trained one task alone; a joint bound trained jointly all tasks that some stage has seen"


def add_references(matrix: ResultMatrix, references: Mapping[str, ResultMatrix]) -> None:
    """Take from each run of one stage its task's baseline, or, where it trained several tasks, their joint bound.

    Args:
        matrix: is given the references.
        references: results by the name of their run.

    Raises:
        UsageError: naming the run that has several stages or other tasks, measured something else, or says again what
            another said.
    """
    for name, other in references.items():
        tasks = _tasks(name, other)
        for task in tasks:
            _check_same(name, other, matrix, task)
        if len(tasks) == 1:
            _add_baseline(name, other, matrix, tasks[0])
        else:
            _add_joint(name, other, matrix, tasks)


def _tasks(name: str, other: ResultMatrix) -> tuple[str, ...]:
    if len(other.stages) != 1:
        raise UsageError(f'"{name}" has {len(other.stages)} stages, and a reference has one', hint=_HINT)
    if other.last != 0:
        raise UsageError(f'"{name}" has no result yet', hint="train it to its end")
    return other.stages[0]


def _check_same(name: str, other: ResultMatrix, matrix: ResultMatrix, task: str) -> None:
    if task not in matrix.tasks:
        raise UsageError(f'"{name}" trained a task "{task}" that the reported run does not have', hint=_HINT)
    mine, theirs = matrix.tasks[task], other.tasks[task]
    if (mine.type, mine.metric, mine.unit) != (theirs.type, theirs.metric, theirs.unit):
        raise UsageError(
            f'"{name}" measured {theirs.metric} of "{task}", and the reported run {mine.metric}', hint=_HINT
        )
    counts = {cell.count for (_, column), cell in matrix.cells.items() if column == task}
    if counts and _cell(other, task).count not in counts:
        message = f'"{name}" was evaluated on {_cell(other, task).count} samples of "{task}", the reported run on'
        raise UsageError(f"{message} {min(counts)}", hint="evaluate both on the same split of the same data")


def _cell(other: ResultMatrix, task: str) -> Score:
    return other.cells.get((0, task)) or Score(None, 0)


def _add_baseline(name: str, other: ResultMatrix, matrix: ResultMatrix, task: str) -> None:
    if matrix.tasks[task].baseline is not None:
        raise UsageError(f'"{name}" gives a second baseline of "{task}"', hint="give one run for each task")
    matrix.tasks[task] = replace(matrix.tasks[task], baseline=other.value(0, task))


def _add_joint(name: str, other: ResultMatrix, matrix: ResultMatrix, tasks: tuple[str, ...]) -> None:
    stage = next((i for i in range(len(matrix.stages)) if set(matrix.seen(i)) == set(tasks)), None)
    if stage is None:
        raise UsageError(f'"{name}" trained {", ".join(tasks)}, which no stage of the run has seen', hint=_HINT)
    for task in tasks:
        if (stage, task) in matrix.joint:
            raise UsageError(f'"{name}" gives a second joint bound of "{task}"', hint="give one run for each stage")
        matrix.record_joint(stage, task, _cell(other, task))
