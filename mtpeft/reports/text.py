"""The text report of one run, and of several side by side; at most 80 columns, readable without colour."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mtpeft.evaluation import Costs, Parameters, ResultMatrix, StageCosts
from mtpeft.reports.numbers import duration, native, percent, size, whole
from mtpeft.reports.paragraphs import Line, join, paragraph
from mtpeft.reports.rows import Read, cost_table, mean_table, metric, reference_table, task_table

if TYPE_CHECKING:
    from rich.console import Console

AGGREGATES = (
    "average", "sample_average", "average_incremental", "task_aware_average", "learning", "forgetting",
    "backward_transfer", "forward_transfer", "joint_average", "joint_intransigence", "worst_average", "worst_case",
)  # fmt: skip


def summary_json(results: dict[str, Any]) -> dict[str, Any]:
    """The summary of a ``results.json``, recomputed from its matrix.

    Raises:
        DataError: if it is no such file's content.
    """
    return ResultMatrix.from_json(results).to_json()["summary"]


def render(results: dict[str, Any], console: Console | None = None) -> str:
    """The report of one run from the content of its ``results.json``; coloured only if ``console`` is a terminal.

    Raises:
        DataError: if it is no such file's content.
    """
    run = _read("", results, "results.json")
    tables = [table.render(console) for table in (task_table([run]), reference_table(run)) if table.rows]
    return join(
        paragraph([_stages(run.matrix)]),
        *tables,
        paragraph(_means(run)),
        paragraph(_costs(run.matrix.costs) if run.matrix.costs else []),
        paragraph([*_legend([run]), *_exceptions(run)]),
    )


def compare(runs: Sequence[tuple[str, dict[str, Any]]], console: Console | None = None) -> str:
    """Several runs, each a name and the content of its ``results.json``, task by task and cost by cost.

    Raises:
        DataError: naming the run whose content cannot be read.
    """
    read = [_read(name, results, name) for name, results in runs]
    metrics = {task: metric(row) for run in read for task, row in run.summary["tasks"].items()}
    tables = [table.render(console) for table in (task_table(read), mean_table(read), cost_table(read)) if table.rows]
    exceptions = [(label, f"{run.name}: {text}") for run in read for label, text in _exceptions(run)]
    measured = [("metrics", ", ".join(f"{task} {name}" for task, name in metrics.items()))]
    return join(*tables, paragraph([*measured, *_legend(read), *exceptions]))


def _read(name: str, results: dict[str, Any], where: str) -> Read:
    matrix = ResultMatrix.from_json(results, where)
    return Read(name, matrix, matrix.to_json()["summary"])


def _stages(matrix: ResultMatrix) -> Line:
    order = " > ".join(" + ".join(stage) for stage in matrix.stages)
    label = "one stage" if len(matrix.stages) == 1 else f"{len(matrix.stages)} stages"
    evaluated = matrix.last + 1
    return label, f"{order} (only {evaluated} evaluated)" if evaluated < len(matrix.stages) else order


def _means(run: Read) -> Iterable[Line]:
    tasks, summary = run.matrix.tasks, run.summary
    units = [record.unit for record in tasks.values()]
    named = [f"{n.replace('_', ' ')} {native(summary[n], units[0])}" for n in AGGREGATES if summary[n] is not None]
    if len(tasks) > 1 and named:
        yield "over tasks", ", ".join(named)
    if len(tasks) > 1 and summary["relative_forgetting"] is not None:
        worst = percent(summary["relative_forgetting_worst"])
        yield "forgotten", f"{percent(summary['relative_forgetting'])} % of the peak in the mean, {worst} % at worst"
    if summary["delta"] is not None:
        macro = percent(summary["delta_macro"])
        yield "delta", f"{percent(summary['delta'])} % of the baselines over tasks, {macro} % over task types"


def _costs(costs: Costs) -> Iterable[Line]:
    yield from (("parameters", text) for text in _parameters(costs.parameters))
    speed = f", {whole(costs.images_per_second)} images/s" if costs.images_per_second is not None else ""
    if costs.seconds is not None:
        yield "time", f"{duration(costs.seconds)} of training{speed}"
    if costs.peak_memory_bytes is not None:
        yield "memory", f"{size(costs.peak_memory_bytes)} at peak"
    if costs.statistics_bytes:
        yield "statistics", f"{size(costs.statistics_bytes)} kept beside parameters"
    if costs.memory_bytes:
        yield "exemplars", f"{size(costs.memory_bytes)} of kept samples"
    yield "inference", f"{costs.inference_passes} {'pass' if costs.inference_passes == 1 else 'passes'} for each image"
    for stage in costs.stages if len(costs.stages) > 1 else ():
        yield "by stage", _stage(stage)


def _stage(stage: StageCosts) -> str:
    kept = stage.statistics_bytes + stage.memory_bytes
    measured = [
        f"{whole(stage.parameters)} trained in {whole(stage.updates)} updates",
        duration(stage.seconds) if stage.seconds is not None else "",
        f"{whole(stage.images_per_second)} images/s" if stage.images_per_second is not None else "",
        f"{size(kept)} kept" if kept else "",
        f"{stage.inference_passes} passes" if stage.inference_passes != 1 else "",
    ]
    return f"{' + '.join(stage.tasks)}: {', '.join(filter(None, measured))}"


def _parameters(parameters: Parameters) -> Iterable[str]:
    share = parameters.shared_fraction
    yield f"shared {whole(parameters.shared)}" + (
        "" if share is None else f" ({percent(100 * share)} % of all trained)"
    )
    yield f"per task {_owned(parameters.tasks)}"
    yield f"heads {_owned(parameters.heads)}"
    if parameters.percent is not None:
        yield f"shared and per task are {percent(parameters.percent)} % of the backbone"


def _owned(counts: dict[str, int]) -> str:
    total = sum(counts.values())
    each = ", ".join(f"{name} {whole(count)}" for name, count in counts.items())
    return f"{whole(total)} ({each})" if total else "0"


def _legend(runs: Sequence[Read]) -> Iterable[Line]:
    rows = [row for run in runs for row in run.summary["tasks"].values() if row["forgetting"] is not None]
    if rows:
        yield (
            "forgetting",
            "how much worse the last score is than the best before the last stage; below 0, later stages helped",
        )
    beside = [row for run in runs for row in run.summary["tasks"].values()]
    if any(row["before"] is not None for row in beside):
        yield "before", "before the task's own stage; untrained: the same without any trained part"
    if any(row["worst"] is not None for row in beside):
        yield "worst", "the worst score since the task was learned, inside stages too (stability gap)"
    if any(row["isolated"] for row in rows):
        yield "isolated", "no other task trains anything this one uses: 0 by construction is no result"


def _exceptions(run: Read) -> Iterable[Line]:
    for cell in run.summary["undefined"]:
        yield "undefined", f"{cell['task']} after stage {cell['stage']} (counted from 0); it enters no mean"
    for name in run.summary["unreliable"]:
        yield "unreliable", f"the baseline of {name} is too near the floor to divide by; its delta enters no mean"
