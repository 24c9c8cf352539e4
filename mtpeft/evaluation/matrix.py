"""The result matrix ``R[stage][task]``: the one record from which every summary is recomputed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mtpeft.errors import DataError, MtpeftError, did_you_mean
from mtpeft.evaluation.costs import Costs
from mtpeft.evaluation.record import TaskRecord
from mtpeft.evaluation.summary import summarize
from mtpeft.files import STRICT, parse
from mtpeft.score import Score
from mtpeft.settings import Whole

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class _Row(Score):
    stage: Whole
    task: str

    @property
    def score(self) -> Score:
        return Score(self.value, self.count, self.detail, self.form, self.task_aware)


@dataclass(frozen=True, kw_only=True)
class _Probe(_Row):
    update: Whole


@dataclass(frozen=True)
class _File:
    __pydantic_config__ = STRICT

    format: Literal[1]
    tasks: dict[str, TaskRecord]
    stages: list[list[str]]
    matrix: list[_Row]
    probes: list[_Probe] = field(default_factory=list)
    joint: list[_Row] = field(default_factory=list)
    costs: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)


class ResultMatrix:
    """Scores by stage and task, keyed, never by position; ``stages`` say which tasks each stage trained.

    Attributes:
        cells: evaluations after a stage, by ``(stage, task)``; of a task that is not trained yet, too, where transfer
            forward is measured.
        probes: evaluations inside a stage, by ``(stage, update, task)``: what a cell after the stage cannot show.
        joint: bounds by ``(stage, task)``: the scores of a model trained jointly on all tasks up to the stage.

    Args:
        tasks: a record for each task.
        stages: the tasks of each planned stage; the matrix may stop earlier, where the run did.
        costs: of the run, once they are known.

    Raises:
        MtpeftError: for a stage without tasks, with one twice, or with one that has no record.
    """

    def __init__(
        self, tasks: Mapping[str, TaskRecord], stages: Iterable[Sequence[str]], costs: Costs | None = None
    ) -> None:
        self.tasks = dict(tasks)
        self.stages = [tuple(stage) for stage in stages]
        self.costs = costs
        self.cells: dict[tuple[int, str], Score] = {}
        self.probes: dict[tuple[int, int, str], Score] = {}
        self.joint: dict[tuple[int, str], Score] = {}
        for index, stage in enumerate(self.stages):
            if not stage:
                raise MtpeftError(f"stage {index} has no task", hint="a stage trains at least one")
            if len(set(stage)) < len(stage):
                raise MtpeftError(f"stage {index} names a task twice", hint="name each task of a stage once")
            for task in stage:
                self._known(task)

    def add(
        self, stage: int, task: str, value: float | None, count: int, detail: Mapping[str, Any] | None = None
    ) -> None:
        """`record` of a score without a closed form."""
        self.record(stage, task, Score(value, count, dict(detail or {})))

    def record(self, stage: int, task: str, score: Score) -> None:
        """One evaluation of ``task`` after ``stage`` (from 0).

        Raises:
            MtpeftError: for an unknown stage or task, a cell that is there already, or a value that is no number or
                that its counts contradict.
        """
        self._put(self.cells, (stage, task), score)

    def record_probe(self, stage: int, update: int, task: str, score: Score) -> None:
        """One evaluation of ``task`` inside ``stage``, after so many updates of it; raises as `record`."""
        self._put(self.probes, (stage, update, task), score)

    def record_joint(self, stage: int, task: str, score: Score) -> None:
        """What a model trained jointly on all tasks up to ``stage`` reaches on ``task``; raises as `record`."""
        self._put(self.joint, (stage, task), score)

    def continued(self, tasks: Mapping[str, TaskRecord], stages: Iterable[Sequence[str]]) -> ResultMatrix:
        """All that is recorded here, with further stages after these; ``tasks`` records all tasks of both.

        What stays true goes on: baselines and floors, and of the costs those of the stages so far, and who is isolated.
        """
        costs = self.costs and Costs(isolated=self.costs.isolated, stages=self.costs.stages)
        known = {name: record for name, record in self.tasks.items() if name in tasks}
        matrix = ResultMatrix({**tasks, **known}, [*self.stages, *stages], costs)
        matrix.cells, matrix.probes, matrix.joint = dict(self.cells), dict(self.probes), dict(self.joint)
        return matrix

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
        further = {
            "probes": [
                {"stage": stage, "update": update, "task": task, **score.to_dict()}
                for (stage, update, task), score in self.probes.items()
            ],
            "joint": _rows(self.joint),
        }
        return {
            "format": FORMAT,
            "tasks": {name: record.to_dict() for name, record in self.tasks.items()},
            "stages": [list(stage) for stage in self.stages],
            "matrix": _rows(self.cells),
            **{name: rows for name, rows in further.items() if rows},
            "costs": self.costs.to_dict() if self.costs else {},
            "summary": summarize(self),
        }

    @staticmethod
    def from_json(data: Any, where: str = "results.json") -> ResultMatrix:
        """What `to_json` gave. Values are recomputed from their counts; the summary is not read, but recomputed too.

        Raises:
            DataError: naming ``where`` and what is wrong.
        """
        file = parse(_File, data, where)
        costs = Costs.from_dict(file.costs, f"{where}: costs") if file.costs else None
        try:
            matrix = ResultMatrix(file.tasks, file.stages, costs)
            for row in file.matrix:
                matrix.record(row.stage, row.task, row.score)
            for probe in file.probes:
                matrix.record_probe(probe.stage, probe.update, probe.task, probe.score)
            for row in file.joint:
                matrix.record_joint(row.stage, row.task, row.score)
            matrix._check_costs()
        except MtpeftError as error:
            raise DataError(f"{where}: {error.message}", hint=error.hint) from None
        return matrix

    def _put(self, scores: dict[Any, Score], key: Any, score: Score) -> None:
        stage, *_, task = key
        self._known(task)
        self._planned(stage)
        if key in scores:
            raise MtpeftError(f'stage {stage} already has a result for "{task}"', hint="each cell is written once")
        try:
            score.check()
        except MtpeftError as error:
            raise DataError(f'stage {stage}: the result of "{task}" {error.message}', hint=error.hint) from None
        scores[key] = score

    def _check_costs(self) -> None:
        """
        Raises:
            MtpeftError: for costs of a stage that is not planned or was there already, or of a task without a record.
        """
        if self.costs is None:
            return
        for index, stage in enumerate(self.costs.stages):
            self._planned(stage.stage)
            if index and stage.stage <= self.costs.stages[index - 1].stage:
                raise MtpeftError(f"costs.stages: stage {stage.stage} is out of order", hint="stages come in order")
        for task in (*self.costs.isolated, *(task for stage in self.costs.stages for task in stage.tasks)):
            self._known(task)

    def _planned(self, stage: int) -> None:
        if not 0 <= stage < len(self.stages):
            raise MtpeftError(f"there is no stage {stage}", hint=f"there are {len(self.stages)}, counted from 0")

    def _known(self, task: str) -> None:
        if task not in self.tasks:
            raise MtpeftError(f'there is no task "{task}"', hint=did_you_mean(task, self.tasks))


def _rows(scores: Mapping[tuple[int, str], Score]) -> list[dict[str, Any]]:
    return [{"stage": stage, "task": task, **score.to_dict()} for (stage, task), score in scores.items()]
