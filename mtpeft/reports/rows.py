"""The report's tables: tasks, means and costs, of one run or of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from mtpeft.evaluation import ResultMatrix
from mtpeft.reports.numbers import UNDEFINED, compact, duration, native, percent, shorten, size, whole
from mtpeft.reports.table import Table

MEANS = {
    "average": "average",
    "average_incremental": "incremental",
    "forgetting": "forgetting",
    "relative_forgetting": "forgotten %",
    "delta": "delta %",
    "delta_macro": "by type %",
}


class Read(NamedTuple):
    """One run's results with their summary."""

    name: str
    matrix: ResultMatrix
    summary: dict[str, Any]


def task_table(runs: Sequence[Read]) -> Table:
    """A row for each task, or for each task and run where there are several."""
    deltas = any(row["delta"] is not None for run in runs for row in run.summary["tasks"].values())
    second = "metric" if len(runs) == 1 else "run"
    table = Table(["task", second, "learned", "last", "forgetting", *(["delta %"] if deltas else [])], words=2)
    for task in dict.fromkeys(task for run in runs for task in run.matrix.tasks):
        for run in (run for run in runs if task in run.matrix.tasks):
            row = run.summary["tasks"][task]
            words = [shorten(task, 16), shorten(metric(row) if len(runs) == 1 else run.name, 18)]
            scores = _scores(row, one_stage=len(run.matrix.stages) == 1)
            table.rows.append([*words, *scores, *([percent(row["delta"])] if deltas else [])])
    return table


REFERENCES = {"before": "before", "task_aware": "task-aware", "worst": "worst", "joint": "joint bound"}


def reference_table(run: Read) -> Table:
    """What stands beside a task's last score, in its own unit: those columns of which any task has a value."""
    rows, records = run.summary["tasks"], run.matrix.tasks
    columns = {REFERENCES[key]: {name: row[key] for name, row in rows.items()} for key in REFERENCES}
    columns["untrained"] = {name: record.floor for name, record in records.items()}
    columns["baseline"] = {name: record.baseline for name, record in records.items()}
    used = {title: values for title, values in columns.items() if any(v is not None for v in values.values())}
    table = Table(["task", *used], words=1)
    for name in rows if used else ():
        numbers = [native(values[name], records[name].unit) for values in used.values()]
        table.rows.append([shorten(name, 16), *numbers])
    return table


def mean_table(runs: Sequence[Read]) -> Table:
    """The means over tasks that any run has; over types only where no native mean says it."""
    used = [name for name in MEANS if any(run.summary[name] is not None for run in runs)]
    if "average" in used:
        used = [name for name in used if name != "delta_macro"]
    table = Table(["run", *(MEANS[name] for name in used)])
    for run in runs if used else ():
        unit = {record.unit for record in run.matrix.tasks.values()}.pop()  # native means are of one unit
        units = dict.fromkeys(("average", "average_incremental", "forgetting"), unit)
        table.rows.append([shorten(run.name, 18), *(native(run.summary[n], units.get(n, "%")) for n in used)])
    return table


def cost_table(runs: Sequence[Read]) -> Table:
    """Trained parameters by owner, time, memory and speed."""
    table = Table(["run", "shared", "per task", "heads", "time", "memory", "images/s"])
    for run in runs:
        if costs := run.matrix.costs:
            owners = (costs.parameters.shared, *map(_sum, (costs.parameters.tasks, costs.parameters.heads)))
            spent = (duration(costs.seconds), size(costs.peak_memory_bytes), whole(costs.images_per_second))
            table.rows.append([shorten(run.name, 18), *map(compact, owners), *spent])
    return table


def metric(row: dict[str, Any]) -> str:
    """A metric with its unit."""
    return f"{row['metric']} ({row['unit']})" if row["unit"] else row["metric"]


def _scores(row: dict[str, Any], *, one_stage: bool) -> list[str]:
    """Learned, last and forgetting; of a run in one stage there is nothing but learned."""
    learned = native(row["learn"], row["unit"])
    if one_stage:
        return [learned, UNDEFINED, UNDEFINED]
    forgetting = native(row["forgetting"], row["unit"])
    isolated = row["isolated"] and row["forgetting"] is not None
    return [learned, native(row["last"], row["unit"]), f"{forgetting} (isolated)" if isolated else forgetting]


def _sum(counts: dict[str, int]) -> int:
    return sum(counts.values())
