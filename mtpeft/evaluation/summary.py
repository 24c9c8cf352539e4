"""What was learned and what was forgotten, recomputed from a result matrix.

Symbols: ``R[l, j]`` the score of task j after stage l, ``T`` the last evaluated stage, ``s`` +1 where higher is better
and -1 where lower is, ``STL`` the task's baseline. Undefined is None, never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass
from math import fsum
from typing import Any, Protocol

from mtpeft.evaluation.costs import Costs
from mtpeft.evaluation.record import TaskRecord
from mtpeft.score import LARGEST, Score


class Results(Protocol):
    """The result matrix, as far as a summary reads it."""

    tasks: dict[str, TaskRecord]
    costs: Costs | None
    cells: dict[tuple[int, str], Score]
    probes: dict[tuple[int, int, str], Score]
    joint: dict[tuple[int, str], Score]

    @property
    def last(self) -> int: ...

    def value(self, stage: int, task: str) -> float | None: ...

    def learned_at(self, task: str) -> int | None: ...

    def seen(self, stage: int) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class TaskSummary:
    """One task's row.

    Attributes:
        type, metric, unit, count: what was measured, and on how many samples at last.
        learn: R[j, j], right after the task's own stage; native unit, as are peak, last and forgetting.
        peak: the best of R[l, j] for j <= l < T; of a task of the last stage, learn.
        last: R[T, j].
        forgetting: s (peak - last), signed: negative where later stages helped (Chaudhry et al., ECCV 2018). None for
            the tasks of the last stage, which nothing could make forget.
        relative_forgetting: 100 forgetting / abs(peak), in percent.
        relative_forgetting_floor: 100 forgetting / abs(peak - floor), in percent.
        intransigence: 100 s (STL - learn) / abs(STL), in percent of the baseline.
        stability: 100 s (last - learn) / abs(STL), in percent of the baseline; None for the tasks of the last stage.
        delta: 100 s (last - STL) / abs(STL), in percent of the baseline; stability - intransigence.
        before: R[j - 1, j], before the task's own stage, where it was evaluated there; native unit, as the next three.
        task_aware: last, where only the task's own classes may be answered; None where the head is the task's own.
        worst: the worst score after any stage or inside one since the task was learned; None where nothing was
            evaluated inside a later stage, for only that shows the stability gap (De Lange et al., ICLR 2023).
        joint: the bound at last: what a model reaches that was trained jointly on all tasks so far.
        joint_intransigence: s (J[j, j] - learn), J the joint bound (Chaudhry et al., ECCV 2018); native unit.
        isolated: no other task trains anything this one uses: forgetting is 0 by construction and is no result.
        reliable: False where the baseline is too near the floor to divide by; such a row enters no relative mean.
    """

    type: str
    metric: str
    unit: str
    count: int | None
    learn: float | None
    peak: float | None
    last: float | None
    forgetting: float | None
    relative_forgetting: float | None
    relative_forgetting_floor: float | None
    intransigence: float | None
    stability: float | None
    delta: float | None
    before: float | None
    task_aware: float | None
    worst: float | None
    joint: float | None
    joint_intransigence: float | None
    isolated: bool
    reliable: bool


def summarize(matrix: Results) -> dict[str, Any]:
    """The summary of ``results.json``: aggregates, and ``tasks`` with a row for each.

    ``average``, ``average_incremental``, ``learning``, ``backward_transfer``, ``backward_transfer_pairs``,
    ``forward_transfer`` and ``forgetting`` are means over tasks in the metric's own unit, transfers signed so that more
    is better; they are None where tasks differ in type or metric, for their units cannot be added. So are
    ``sample_average``, which weighs samples alike and not tasks, ``task_aware_average``, ``joint_average``,
    ``joint_intransigence``, and of evaluations inside stages ``worst_average`` (min-ACC: of the tasks before the last
    stage) and ``worst_case`` (WC-ACC: of all, those of the last stage with what they learned). ``delta``,
    ``intransigence``, ``stability`` and ``relative_forgetting`` are means in percent and can be; ``_macro`` is the mean
    over task types of each type's mean. A null cell leaves the means that need it; ``undefined`` lists such cells.
    """
    rows = {name: task_summary(matrix, name) for name in matrix.tasks}
    return {
        **_native(matrix, rows),
        **_relative(matrix, rows),
        "isolated": bool(rows) and all(row.isolated for row in rows.values()),
        "undefined": [{"stage": stage, "task": task} for (stage, task), c in matrix.cells.items() if c.value is None],
        "tasks": {name: asdict(row) for name, row in rows.items()},
    }


def task_summary(matrix: Results, name: str) -> TaskSummary:
    """The row of one task; all None where it was not trained yet."""
    record, final, first = matrix.tasks[name], matrix.last, matrix.learned_at(name)
    learn = None if first is None else matrix.value(first, name)
    last = None if first is None else matrix.value(final, name)
    peak = learn if first is None or first == final else _best(record, _history(matrix, name, first))
    forgetting = None if first == final else _gain(record, last, peak)
    base = record.baseline
    cell = matrix.cells.get((final, name))
    return TaskSummary(
        type=record.type, metric=record.metric, unit=record.unit, count=cell.count if cell else None,
        learn=learn, peak=peak, last=last, forgetting=forgetting,
        relative_forgetting=_percent(forgetting, peak),
        relative_forgetting_floor=_percent(forgetting, _difference(peak, record.floor)),
        intransigence=_percent(_gain(record, learn, base), base),
        stability=None if first == final else _percent(_gain(record, learn, last), base),
        delta=_percent(_gain(record, base, last), base),
        before=None if not first else matrix.value(first - 1, name),
        task_aware=cell.task_aware.value if cell and cell.task_aware else None,
        worst=None if first is None else _worst(matrix, name, first),
        joint=_joint(matrix, name, final),
        joint_intransigence=None if first is None else _gain(record, learn, _joint(matrix, name, first)),
        isolated=matrix.costs is not None and name in matrix.costs.isolated,
        reliable=reliable(record),
    )  # fmt: skip


def reliable(record: TaskRecord) -> bool:
    """Whether percentages of the baseline mean anything: it is not 0, not under 1 %, not under twice the floor."""
    if record.baseline is None:
        return True
    if record.baseline == 0 or not record.higher_is_better:
        return record.baseline != 0
    enough = record.unit != "%" or record.baseline >= 1
    return enough and (record.floor is None or record.baseline >= 2 * record.floor)


def _native(matrix: Results, rows: dict[str, TaskSummary]) -> dict[str, Any]:
    """Means in the metric's own unit; all None where there is more than one."""
    trained = {name: rows[name] for name in matrix.seen(matrix.last)}
    kinds = {(r.type, r.metric, r.higher_is_better, r.unit) for r in (matrix.tasks[name] for name in trained)}
    values = _published(matrix, trained) | _beside(matrix, trained)
    return {name: value if len(kinds) == 1 else None for name, value in values.items()}


def _published(matrix: Results, rows: dict[str, TaskSummary]) -> dict[str, Any]:
    """What tables of continual learning print."""
    stages = range(matrix.last + 1)
    averages = [mean(matrix.value(t, name) for name in matrix.seen(t)) for t in stages]
    return {
        "average": averages[-1] if averages else None,
        "average_incremental": mean(averages),
        "averages": averages,
        "learning": mean(row.learn for row in rows.values()),
        "backward_transfer": mean(_transfer(matrix, name, matrix.last) for name in rows),
        "backward_transfer_pairs": mean(_transfer(matrix, name, t) for name in rows for t in stages),
        "forward_transfer": mean(_forward(matrix.tasks[name], row) for name, row in rows.items()),
        "forgetting": mean(row.forgetting for row in rows.values()),
    }


def _beside(matrix: Results, rows: dict[str, TaskSummary]) -> dict[str, Any]:
    """What must stand beside it: other weights, other answers, bounds from above and below."""
    averages = [_sample_average(matrix, t) for t in range(matrix.last + 1)]
    return {
        "sample_average": averages[-1] if averages else None,
        "sample_average_incremental": None if None in averages else mean(averages),
        "sample_averages": averages,
        "task_aware_average": _task_aware_average(rows.values()),
        "joint_average": mean(row.joint for row in rows.values()),
        "joint_intransigence": mean(row.joint_intransigence for row in rows.values()),
        "worst_average": mean(row.worst for row in rows.values()),
        "worst_case": _worst_case(matrix, rows),
    }


def _sample_average(matrix: Results, stage: int) -> float | None:
    """From the summed counts of all tasks seen; None where one of them was evaluated and has no counts to sum."""
    cells = [matrix.cells[stage, name] for name in matrix.seen(stage) if (stage, name) in matrix.cells]
    counts = [cell.form.counts(cell.detail) if cell.form else None for cell in cells]
    scales = {cell.form.scale for cell in cells if cell.form}
    known = [pair for pair in counts if pair is not None]
    if len(known) < len(cells) or len(scales) != 1:
        return None
    top, bottom = (fsum(column) for column in zip(*known, strict=True))
    return scales.pop() * top / bottom if bottom else None


def _task_aware_average(rows: Collection[TaskSummary]) -> float | None:
    """A task with a head of its own has one score, which is both; None where all have."""
    if all(row.task_aware is None for row in rows):
        return None
    return mean(row.last if row.task_aware is None else row.task_aware for row in rows)


def _relative(matrix: Results, rows: dict[str, TaskSummary]) -> dict[str, Any]:
    counted = {name: row for name, row in rows.items() if row.reliable}
    relative = [row.relative_forgetting for row in rows.values() if row.relative_forgetting is not None]
    return {
        "delta": mean(row.delta for row in counted.values()),
        "delta_macro": _macro(counted.values(), lambda row: row.delta),
        "intransigence": mean(row.intransigence for row in counted.values()),
        "stability": _mean_stability(matrix, counted),
        "relative_forgetting": mean(relative),
        "relative_forgetting_macro": _macro(rows.values(), lambda row: row.relative_forgetting),
        "relative_forgetting_worst": max(relative, default=None),
        "unreliable": [name for name, row in rows.items() if not row.reliable],
    }


def _mean_stability(matrix: Results, rows: dict[str, TaskSummary]) -> float | None:
    """Tasks of the last stage enter as 0, so that mean delta = mean stability - mean intransigence."""
    if all(row.stability is None for row in rows.values()):
        return None
    newest = {name for name, row in rows.items() if matrix.learned_at(name) == matrix.last and row.delta is not None}
    return mean(0.0 if name in newest else row.stability for name, row in rows.items())


def mean(values: Iterable[float | None]) -> float | None:
    """Of the defined values, in an order-free sum; None where there are none."""
    defined = [value for value in values if value is not None]
    return fsum(defined) / len(defined) if defined else None


def _macro(rows: Iterable[TaskSummary], column: Callable[[TaskSummary], float | None]) -> float | None:
    rows = list(rows)
    types = dict.fromkeys(row.type for row in rows)
    return mean(mean(column(row) for row in rows if row.type == kind) for kind in types)


def _history(matrix: Results, name: str, first: int) -> list[float]:
    values = [matrix.value(stage, name) for stage in range(first, matrix.last)]
    return [value for value in values if value is not None]


def _best(record: TaskRecord, values: list[float]) -> float | None:
    return max(values, key=lambda value: record.sign * value, default=None)


def _transfer(matrix: Results, name: str, stage: int) -> float | None:
    first = matrix.learned_at(name)
    if first is None or stage <= first:
        return None
    return _gain(matrix.tasks[name], matrix.value(first, name), matrix.value(stage, name))


def _forward(record: TaskRecord, row: TaskSummary) -> float | None:
    return _gain(record, record.floor, row.before)


def _joint(matrix: Results, name: str, stage: int) -> float | None:
    bound = matrix.joint.get((stage, name))
    return bound.value if bound else None


def _worst(matrix: Results, name: str, first: int) -> float | None:
    inside = [score.value for (stage, _, task), score in matrix.probes.items() if task == name and stage > first]
    if not inside:
        return None
    after = [matrix.value(stage, name) for stage in range(first, matrix.last + 1)]
    defined = [value for value in [*inside, *after] if value is not None]
    return min(defined, key=lambda value: matrix.tasks[name].sign * value, default=None)


def _worst_case(matrix: Results, rows: dict[str, TaskSummary]) -> float | None:
    """None where a task before the last stage has no worst score: without it, nothing is bounded."""
    newest = {name for name in rows if matrix.learned_at(name) == matrix.last}
    values = [row.last if name in newest else row.worst for name, row in rows.items()]
    return None if None in values or len(newest) == len(rows) else mean(values)


def _gain(record: TaskRecord, before: float | None, after: float | None) -> float | None:
    """How much better ``after`` is than ``before``."""
    difference = _difference(after, before)
    return None if difference is None else record.sign * difference + 0.0  # + 0.0: no negative zero


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _percent(part: float | None, whole: float | None) -> float | None:
    """None where ``whole`` is so near 0 that the percentage is no number."""
    percent = 100 * part / abs(whole) if part is not None and whole else None
    return percent if percent is not None and abs(percent) < LARGEST else None
