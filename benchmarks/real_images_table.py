"""`results/real_images.md` from the cells that `real_images.py` leaves."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

TASKS = {"pacs": "photographs, top-1", "bccd": "cells, AP", "camvid": "streets, mIoU"}


def report(tried: Sequence[Path], cells: Sequence[Path]) -> str:
    """The page: joint, sequential, the learning rates tried, and what was not run.

    Args:
        tried: the files of the trainings that chose learning rates, whether or not they exist.
        cells: those of the grid.
    """
    found = [json.loads(path.read_text()) for path in cells if path.exists()]
    chosen = [json.loads(path.read_text()) for path in tried if path.exists()]
    missing = [path.stem for path in (*(tried if chosen else ()), *cells) if not path.exists()]
    if not found:
        return "# Real images\n\nNothing was run yet.\n"
    steps, threads = found[0]["cell"]["steps"], sorted({record["threads"] for record in found})
    kinds = {kind: _settings([r for r in found if r["cell"]["schedule"] == kind]) for kind in ("joint", "sequential")}
    parts = [
        "# Real images\n",
        "PACS photographs (classification, 7 classes), BCCD cells (detection, 3 classes) and CamVid streets\n"
        "(segmentation, 11 classes) on ViT-Ti/16 (`augreg_in21k_ft_in1k`) at 160 px: recipes\n"
        "`tasks/recipes/pacs-bccd-camvid-*.toml`. `random`: the same architecture without pre-training. All numbers\n"
        "in percent, of the test splits, each run once; mean ± standard deviation where several seeds were run. Every\n"
        f"stage makes {steps} updates with 8 images of each of its tasks. `time` is of training, on\n"
        f"{' or '.join(map(str, threads))} thread(s) of a machine that did other work too.\n",
        "## All three at once\n",
        _joint(kinds["joint"]),
        "## One after another: photographs, cells, streets\n",
        "`learned`: right after the task's own stage; `last`: after all stages; `forgetting`: learned - last, by\n"
        "construction 0 where tasks share nothing.\n",
        _sequential(kinds["sequential"]),
        "## Learning rates\n",
        *_rates(chosen, {record["cell"]["lr"] for record in found}),
        "## Not run\n",
        (", ".join(missing) if missing else "Nothing is missing.") + "\n",
    ]
    return "\n".join(parts)


def _settings(records: list[dict]) -> list[list[dict]]:
    """Records of one setting together: its seeds."""
    groups: dict[tuple, list[dict]] = {}
    for record in records:
        groups.setdefault((record["cell"]["method"], record["cell"]["weights"]), []).append(record)
    return list(groups.values())


def _joint(settings: list[list[dict]]) -> str:
    head = ["method", "weights", *TASKS.values(), "AP50", "parts", "heads", "time (s)", "lr", "seeds"]
    rows = []
    for records in settings:
        values = [_over(records, lambda r, task=task: _cell(r, task, 0)["value"]) for task in TASKS]
        half = _over(records, lambda r: _cell(r, "bccd", 0)["detail"]["AP50"])
        rows.append([*_name(records), *values, half, *_costs(records), *_run(records)])
    return _table(head, rows)


def _sequential(settings: list[list[dict]]) -> str:
    head = ["method", "task", "learned", "last", "forgetting", "parts", "heads", "time (s)", "lr", "seeds"]
    rows = []
    for records in settings:
        for stage, (task, what) in enumerate(TASKS.items()):
            about = [*_costs(records), *_run(records)] if stage == 0 else [""] * 5
            rows.append(
                [records[0]["cell"]["method"] if stage == 0 else "", what, *_kept(records, task, stage), *about]
            )
    return _table(head, rows)


def _kept(records: list[dict], task: str, stage: int) -> list[str]:
    """Learned, last and forgetting; nothing comes after the last stage."""

    def learned(record: dict) -> float:
        return _cell(record, task, stage)["value"]

    def last(record: dict) -> float:
        return _cell(record, task, len(TASKS) - 1)["value"]

    if stage == len(TASKS) - 1:
        return [_over(records, learned), _over(records, last), ""]
    return [_over(records, learned), _over(records, last), _over(records, lambda r: learned(r) - last(r))]


def _rates(records: list[dict], used: set[float | None]) -> list[str]:
    if used == {None}:
        return ["Each method's own default, untuned.\n"]
    rows = []
    for record in records:
        cell, values = record["cell"], [record["validation"][task] for task in TASKS]
        rows.append([cell["method"], f"{cell['lr']:g}", *(f"{value:.1f}" for value in (*values, mean(values)))])
    text = (
        f"On validation (of PACS a tenth of the training images), {records[0]['cell']['steps']} joint updates; the\n"
        "best mean of the three was taken.\n"
    )
    return [text, _table(["method", "lr", *TASKS.values(), "mean"], rows)]


def _cell(record: dict, task: str, stage: int) -> dict[str, Any]:
    matrix = record["results"]["matrix"]
    return next(entry for entry in matrix if entry["task"] == task and entry["stage"] == stage)


def _name(records: list[dict]) -> list[str]:
    return [records[0]["cell"]["method"], records[0]["cell"]["weights"]]


def _costs(records: list[dict]) -> list[str]:
    parameters = records[0]["results"]["costs"]["parameters"]
    parts = parameters["shared"] + sum(parameters["tasks"].values())
    seconds = mean(record["results"]["costs"]["seconds"] for record in records)
    return [f"{parts:,}", f"{sum(parameters['heads'].values()):,}", f"{seconds:.0f}"]


def _run(records: list[dict]) -> list[str]:
    rate = records[0]["cell"]["lr"]
    return ["own" if rate is None else f"{rate:g}", str(len(records))]


def _over(records: list[dict], value: Callable[[dict], float]) -> str:
    """One number, or ``mean ± standard deviation`` over the seeds."""
    numbers = [value(record) for record in records]
    return f"{mean(numbers):.1f}" + (f" ± {stdev(numbers):.1f}" if len(numbers) > 1 else "")


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|---|" + "--:|" * (len(head) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"
