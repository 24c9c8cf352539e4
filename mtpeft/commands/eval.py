"""``mtpeft eval``: the metrics of a run again, from its weights and data."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from mtpeft.commands.output import print_json, print_table
from mtpeft.config import load as load_config
from mtpeft.data.shared_images import together
from mtpeft.errors import UsageError, did_you_mean
from mtpeft.names import visible
from mtpeft.score import Score
from mtpeft.task import SPLITS
from mtpeft.training.evaluate import evaluate_together
from mtpeft.training.gallery import gallery, write_galleries
from mtpeft.training.manifest import Manifest, data_changes
from mtpeft.training.run_files import refuse_existing
from mtpeft.training.setup import find_adapter, find_config, open_run


def run(folder: Path, *, split: str, best: bool, pictures: Path | None, json: bool) -> None:
    """Evaluate every task that the run has met; what is read outside of its folder is said on stderr first.

    Data that is not what it was is evaluated on with a warning, and ``data_changed`` in its row.

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
    _say(_sources(folder))
    opened = open_run(folder)
    changed = data_changes(Manifest.read(folder), opened, (split,))
    _say(f"warning: {sentence}" for sentence in changed.values())
    scores: dict[str, Score] = {}
    drawn: dict[str, Image.Image] = {}
    names_of_passes = together(opened.tasks, opened.host.tasks).values()
    for names in [(name,) for name in opened.host.tasks] if best else names_of_passes:
        if best:
            opened.restore(find_adapter(folder, names[0]))
        scores |= evaluate_together(opened, names, split)
        drawn |= {name: gallery(opened, name, split) for name in names if pictures is not None}
    rows = [_row(opened.tasks[name], name, name in changed) | scores[name].to_dict() for name in opened.host.tasks]
    if pictures is not None:
        write_galleries(pictures, drawn)
    if json:
        print_json({"run": str(folder), "split": split, "best": best, "tasks": rows})
    else:
        print_table(("task", "metric", "value", "unit", "count"), rows)
        if pictures is not None:
            print(f"\npictures  {pictures}")


def _row(task: Any, name: str, changed: bool) -> dict[str, Any]:
    about = {"task": name, "metric": task.metric_name, "unit": task.unit}
    return about | ({"data_changed": True} if changed else {})


def _sources(folder: Path) -> Iterator[str]:
    """What a run's configuration names, before it is read: the folder may be another's."""
    config = load_config(find_config(folder))
    for name, task in config.tasks.items():
        if task.settings.get("data"):
            yield f'reads the data of "{name}": {task.settings["data"]}'
    if config.weights:
        yield f"reads weights: {config.weights}"


def _say(sentences: Iterable[str]) -> None:
    for sentence in sentences:
        print(visible(sentence), file=sys.stderr)
