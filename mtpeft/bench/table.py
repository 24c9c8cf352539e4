"""A comparison as published tables have it: each task, the means, parameters, PPT, time and memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import exp, log10
from statistics import mean, stdev
from typing import Any

from mtpeft.bench.runner import Comparison
from mtpeft.bench.trials import Record, Trial
from mtpeft.names import visible
from mtpeft.plugins import resolve
from mtpeft.reports.numbers import UNDEFINED, native, percent, whole
from mtpeft.reports.table import Table


@dataclass
class Row:
    """A method's line; None where something is missing or undefined.

    Attributes:
        scores: each task's metric on ``test``, one for each seed that was run.
        groups: the mean over the tasks of each group.
        mean: over all tasks.
        mean_of_groups: the mean of ``groups``.
        over_stages: of a sequence, its ``average_incremental`` and ``forgetting``, one for each seed that was run.
        parts, head: trained parameters without and of heads, the mean over trainings.
        ppt: the mean as a fraction, times ``exp(-log10(parts / scale + 1))``.
        seconds, memory: of training, summed and the largest.
        time_ratio, memory_ratio: to each method of ``relative_to``, over the trainings that both have.
        delta: of each method of ``relative_to``, by how much this one is better, in percent of its score, the mean over
            tasks, whatever their units; below zero where it is worse.
        rates: what was chosen, by task.
    """

    method: str
    scores: dict[str, list[float]] = field(default_factory=dict)
    groups: dict[str, float | None] = field(default_factory=dict)
    mean: float | None = None
    mean_of_groups: float | None = None
    over_stages: dict[str, list[float]] = field(default_factory=dict)
    parts: float | None = None
    head: float | None = None
    ppt: float | None = None
    seconds: float | None = None
    memory: int | None = None
    time_ratio: dict[str, float | None] = field(default_factory=dict)
    memory_ratio: dict[str, float | None] = field(default_factory=dict)
    delta: dict[str, float | None] = field(default_factory=dict)
    rates: dict[str, float | None] = field(default_factory=dict)


def rows(comparison: Comparison) -> list[Row]:
    """A row for each method of which anything was tested, in the plan's order."""
    made = {m: {t: comparison.tested(m, t) for t in comparison.tasks} for m in comparison.methods}
    good = {m: {t: [p for p in pairs if not p[1].error] for t, pairs in by.items()} for m, by in made.items()}
    found = {method: _row(comparison, method, good) for method in comparison.methods if any(good[method].values())}
    for row in found.values():
        others = {name: found[name].scores if name in found else {} for name in comparison.bench.relative_to}
        row.delta = {name: _delta(comparison, row.scores, other) for name, other in others.items()}
    return list(found.values())


Tested = dict[str, dict[str, list[tuple[Trial, Record]]]]
"""By method and task of a trial: what was tested, by seed."""


def _row(comparison: Comparison, method: str, good: Tested) -> Row:
    bench, pairs = comparison.bench, [pair for by in good[method].values() for pair in by]
    row = Row(method)
    for _, record in pairs:
        for found, into in ((record.scores, row.scores), (record.over_stages, row.over_stages)):
            for name, value in found.items():
                if value is not None:
                    into.setdefault(name, []).append(value)
    centre = {task: mean(values) for task, values in row.scores.items()}
    row.groups = {name: _mean([centre.get(task) for task in tasks]) for name, tasks in bench.groups.items()}
    row.mean = _mean([centre.get(task) for task in comparison.config.tasks]) if comparable(comparison) else None
    row.mean_of_groups = _mean(list(row.groups.values())) if comparable(comparison) else None
    counts = [record.costs["parameters"] for _, record in pairs if record.costs]
    row.parts = _mean([count["shared"] + sum(count["tasks"].values()) for count in counts])
    row.head = _mean([sum(count["heads"].values()) for count in counts])
    if row.mean is not None and row.parts is not None:
        row.ppt = ppt(row.mean / 100, row.parts, bench.scale)
    row.seconds = sum(record.seconds for _, record in pairs if record.seconds is not None)
    row.memory = max((record.memory_bytes for _, record in pairs if record.memory_bytes), default=None)
    row.time_ratio = {o: _ratio(good, method, o, lambda r: r.seconds) for o in bench.relative_to}
    row.memory_ratio = {o: _ratio(good, method, o, lambda r: r.memory_bytes) for o in bench.relative_to}
    row.rates = {task: by[0][0].lr for task, by in good[method].items() if by}
    return row


def ppt(score: float, parameters: float, scale: float = 1e7) -> float:
    """The score discounted for trained parameters without heads: ``score exp(-log10(parameters / scale + 1))``.

    "Parameter-Efficient Fine-Tuning for Pre-Trained Vision Models: A Survey and Benchmark". It is nearly blind below
    half a million parameters, and ``scale`` is absolute: read it beside memory and time.
    """
    return score * exp(-log10(parameters / scale + 1))


def comparable(comparison: Comparison) -> bool:
    """Whether a mean over the tasks means something: all in percent, and higher is better."""
    kinds = [resolve("tasks", task.type) for task in comparison.config.tasks.values()]
    return all(kind.unit == "%" and kind.higher_is_better for kind in kinds)


def _ratio(good: Tested, method: str, other: str, cost: Any) -> float | None:
    """Of summed costs, over the first seed of the tasks that both have."""
    both = [(good[method][task], good[other][task]) for task in good[method]]
    costs = [(cost(own[0][1]), cost(others[0][1])) for own, others in both if own and others]
    costs = [(own, others) for own, others in costs if own is not None and others]
    return sum(own for own, _ in costs) / sum(others for _, others in costs) if costs else None


def _delta(comparison: Comparison, own: dict[str, list[float]], other: dict[str, list[float]]) -> float | None:
    """Over all tasks; None where one of them is missing, or its score to compare with is 0."""
    gains: list[float | None] = []
    for task, sign in comparison.signs.items():
        base = mean(other[task]) if task in own and task in other else 0.0
        gains.append(100 * sign * (mean(own[task]) - base) / abs(base) if base else None)
    return _mean(gains)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known and len(known) == len(values) else None


def table(comparison: Comparison, found: list[Row]) -> Table:
    """What people read."""
    stages = list(dict.fromkeys(name for row in found for name in row.over_stages))
    drawn = Table([heading for heading, _ in _cells(comparison, Row(""), stages)])
    drawn.rows += [[cell for _, cell in _cells(comparison, row, stages)] for row in found]
    return drawn


def _cells(comparison: Comparison, row: Row, stages: list[str]) -> Iterator[tuple[str, str]]:
    """Headings with a row's cells; means and differences stand there where there are several tasks."""
    tasks, bench = comparison.config.tasks, comparison.bench
    units = {name: resolve("tasks", task.type).unit for name, task in tasks.items()}
    yield "method", row.method
    yield from ((task, _spread(row.scores.get(task, []), unit)) for task, unit in units.items())
    yield from ((group, percent(row.groups.get(group))) for group in bench.groups)
    if bench.groups:
        yield "mean of groups", percent(row.mean_of_groups)
    if len(tasks) > 1:
        yield f"mean of {len(tasks)}", percent(row.mean)
    unit = next(iter(units.values()))
    yield from ((name.replace("_", " "), _spread(row.over_stages.get(name, []), unit)) for name in stages)
    if len(tasks) > 1:
        yield from ((f"delta to {other}", _gain(row.delta.get(other))) for other in bench.relative_to)
    yield "parts", whole(row.parts)
    yield "with head", whole(None if row.parts is None or row.head is None else row.parts + row.head)
    yield "PPT", UNDEFINED if row.ppt is None else f"{row.ppt:.3f}"
    for other in bench.relative_to:
        yield f"time / {other}", _times(row.time_ratio.get(other))
        yield f"memory / {other}", _times(row.memory_ratio.get(other))
    yield "lr", _rates(row)
    yield "seeds", _several(row)


def _spread(values: list[float], unit: str) -> str:
    if len(values) < 2:
        return native(values[0] if values else None, unit)
    return f"{native(mean(values), unit)} ± {native(stdev(values), unit)}"


def _several(row: Row) -> str:
    """How many seeds were run; for some tasks maybe more than for others."""
    return "-".join(str(count) for count in sorted({len(values) for values in row.scores.values()}))


def _gain(delta: float | None) -> str:
    return UNDEFINED if delta is None else f"{delta:+.1f} %"


def _times(ratio: float | None) -> str:
    return UNDEFINED if ratio is None else f"{ratio:.2f}"


def _rates(row: Row) -> str:
    rates = {"own" if rate is None else f"{rate:g}" for rate in row.rates.values()}
    return rates.pop() if len(rates) == 1 else " ".join(f"{rate:g}" for rate in row.rates.values() if rate is not None)


def markdown(comparison: Comparison) -> str:
    """A page for the records: the table, what failed, and what was not run."""
    bench, drawn = comparison.bench, table(comparison, rows(comparison))
    lines = [f"# {comparison.recipe.stem}", "", *drawn.markdown(), ""]
    chosen = "the same learning rates were tried for each method and task and chosen on validation alone"
    rates = chosen if bench.learning_rates else "learning rates are own"
    lines += [
        f"Scores are of the test split, looked at once; {rates}.",
        "`parts` are the trained parameters without heads; PPT uses their number. `mean ± standard deviation` where",
        "several seeds were run. Time is CPU time of training (on a GPU: wall time), memory: how much the process grew",
        "(on a GPU: its peak).",
    ]
    for heading, items in (("Failed", failures(comparison)), ("Not run", comparison.missing())):
        if items:
            lines += ["", f"## {heading}", "", *(f"- {visible(item)}" for item in items)]
    return "\n".join(lines) + "\n"


def failures(comparison: Comparison) -> list[str]:
    """What has no score, and why; of a method that fails everywhere for one reason, that reason once."""
    found: dict[tuple[str, str], list[str]] = {}
    for method in comparison.methods:
        for task in comparison.tasks:
            for reason in dict.fromkeys(comparison.errors(method, task)):
                found.setdefault((method, reason), []).append(task)
    return [f"{method} on {', '.join(tasks)}: {reason}" for (method, reason), tasks in found.items()]
