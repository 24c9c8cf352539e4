"""The result matrix ``R[stage][task]``: the one record from which every summary is recomputed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any, Literal

from mtpeft.errors import DataError, MtpeftError, did_you_mean
from mtpeft.evaluation.costs import Costs
from mtpeft.files import STRICT, parse

FORMAT = 1


@dataclass(frozen=True)
class TaskRecord:
    """What must be known of a task to read its column.

    Attributes:
        type: its task type.
        metric: the metric's name.
        higher_is_better: the metric's direction.
        baseline: what the task reaches when trained alone (same backbone, method, budget and evaluation), if known.
        unit: of the metric, for tables.
        floor: what is reached without learning (chance, or 0), if known.
    """

    __pydantic_config__ = STRICT

    type: str
    metric: str
    higher_is_better: bool
    baseline: float | None
    unit: str = ""
    floor: float | None = None

    @property
    def sign(self) -> int:
        return 1 if self.higher_is_better else -1

    def to_dict(self) -> dict[str, Any]:
        """The four fields every file has, and those of the others that say something."""
        return {name: value for name, value in asdict(self).items() if name == "baseline" or value not in ("", None)}


@dataclass(frozen=True)
class Cell:
    """One evaluation: the metric's value (None where undefined), samples seen, and counts it can be recomputed from."""

    value: float | None
    count: int
    detail: Mapping[str, Any]


@dataclass(frozen=True)
class _Row:
    __pydantic_config__ = STRICT

    stage: int
    task: str
    value: float | None
    count: int
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _File:
    __pydantic_config__ = STRICT

    format: Literal[1]
    tasks: dict[str, TaskRecord]
    stages: list[list[str]]
    matrix: list[_Row]
    costs: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)


class ResultMatrix:
    """Values by stage and task, keyed, never by position; ``stages`` say which tasks each stage trained.

    Args:
        tasks: a record for each task.
        stages: the tasks of each planned stage; the matrix may stop earlier, where the run did.
        costs: of the run, once they are known.

    Raises:
        MtpeftError: for a stage without tasks, or with a task that has no record.
    """

    def __init__(
        self, tasks: Mapping[str, TaskRecord], stages: Iterable[Sequence[str]], costs: Costs | None = None
    ) -> None:
        self.tasks = dict(tasks)
        self.stages = [tuple(stage) for stage in stages]
        self.costs = costs
        self.cells: dict[tuple[int, str], Cell] = {}
        for index, stage in enumerate(self.stages):
            if not stage:
                raise MtpeftError(f"stage {index} has no task", hint="a stage trains at least one")
            for task in stage:
                self._known(task)

    def add(
        self, stage: int, task: str, value: float | None, count: int, detail: Mapping[str, Any] | None = None
    ) -> None:
        """One evaluation of ``task`` after ``stage`` (from 0), on ``count`` samples; ``value`` None where undefined.

        Raises:
            MtpeftError: for an unknown stage or task, a cell that is there already, or a value that is no number.
        """
        self._known(task)
        if not 0 <= stage < len(self.stages):
            raise MtpeftError(f"there is no stage {stage}", hint=f"there are {len(self.stages)}, counted from 0")
        if (stage, task) in self.cells:
            raise MtpeftError(f'stage {stage} already has a result for "{task}"', hint="each cell is written once")
        if value is not None and not isfinite(value):
            raise MtpeftError(f'the result of "{task}" is {value}', hint="an undefined metric is None, not a number")
        if count < 0:
            raise MtpeftError(f'the result of "{task}" counts {count} samples', hint="a count is 0 or more")
        self.cells[stage, task] = Cell(value, count, dict(detail or {}))

    def value(self, stage: int, task: str) -> float | None:
        """``R[stage][task]``, None where undefined or not evaluated."""
        cell = self.cells.get((stage, task))
        return cell.value if cell else None

    @property
    def last(self) -> int:
        """The last stage that was evaluated; -1 before the first."""
        return max((stage for stage, _ in self.cells), default=-1)

    def learned_at(self, task: str) -> int | None:
        """The first evaluated stage that trained ``task``, or None."""
        return next((i for i, stage in enumerate(self.stages[: self.last + 1]) if task in stage), None)

    def seen(self, stage: int) -> tuple[str, ...]:
        """The tasks trained up to and including ``stage``, in order."""
        return tuple(dict.fromkeys(task for names in self.stages[: stage + 1] for task in names))

    def to_json(self) -> dict[str, Any]:
        """The content of ``results.json``, its summary recomputed."""
        from mtpeft.evaluation.summary import summarize

        return {
            "format": FORMAT,
            "tasks": {name: record.to_dict() for name, record in self.tasks.items()},
            "stages": [list(stage) for stage in self.stages],
            "matrix": [{"stage": stage, "task": task, **asdict(cell)} for (stage, task), cell in self.cells.items()],
            "costs": self.costs.to_dict() if self.costs else {},
            "summary": summarize(self),
        }

    @staticmethod
    def from_json(data: Any, where: str = "results.json") -> ResultMatrix:
        """What `to_json` gave; the summary in it is not read, for it is recomputed.

        Raises:
            DataError: naming ``where`` and what is wrong.
        """
        file = parse(_File, data, where)
        costs = Costs.from_dict(file.costs, f"{where}: costs") if file.costs else None
        try:
            matrix = ResultMatrix(file.tasks, file.stages, costs)
            for row in file.matrix:
                matrix.add(row.stage, row.task, row.value, row.count, row.detail)
        except MtpeftError as error:
            raise DataError(f"{where}: {error.message}", hint=error.hint) from None
        return matrix

    def _known(self, task: str) -> None:
        if task not in self.tasks:
            raise MtpeftError(f'there is no task "{task}"', hint=did_you_mean(task, self.tasks))
