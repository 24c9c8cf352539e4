"""``mtpeft eval``: the metrics of a run again, from its weights and data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from mtpeft.commands.output import print_json, print_table
from mtpeft.data.shared_images import together
from mtpeft.errors import UsageError, did_you_mean
from mtpeft.task import SPLITS, Score
from mtpeft.training.evaluate import evaluate_together
from mtpeft.training.gallery import gallery, write_galleries
from mtpeft.training.run_files import refuse_existing
from mtpeft.training.setup import find_adapter, open_run


def run(folder: Path, *, split: str, best: bool, pictures: Path | None, json: bool) -> None:
    """Evaluate every task that the run has met.

    Args:
        best: take each task's best weights on validation instead of the last.
        pictures: a folder for one picture of each task: some samples with their truth and the prediction.

    Raises:
        UsageError: for an unknown split, or a folder of pictures that exists.
        MtpeftError: if there is no such run or its files are damaged.
    """
    if split not in SPLITS:
        raise UsageError(f'there is no split "{split}"', hint=did_you_mean(split, SPLITS))
    if pictures is not None:
        refuse_existing(pictures, hint="give another --pictures")
    opened = open_run(folder)
    scores: dict[str, Score] = {}
    drawn: dict[str, Image.Image] = {}
    for names in (
        [(name,) for name in opened.host.tasks] if best else together(opened.tasks, opened.host.tasks).values()
    ):
        if best:
            opened.restore(find_adapter(folder, names[0]))
        scores |= evaluate_together(opened, names, split)
        drawn |= {name: gallery(opened, name, split) for name in names if pictures is not None}
    rows = [_row(opened.tasks[name], name) | scores[name].to_dict() for name in opened.host.tasks]
    if pictures is not None:
        write_galleries(pictures, drawn)
    if json:
        print_json({"run": str(folder), "split": split, "best": best, "tasks": rows})
    else:
        print_table(("task", "metric", "value", "unit", "count"), rows)
        if pictures is not None:
            print(f"\npictures  {pictures}")


def _row(task: Any, name: str) -> dict[str, Any]:
    return {"task": name, "metric": task.metric_name, "unit": task.unit}
