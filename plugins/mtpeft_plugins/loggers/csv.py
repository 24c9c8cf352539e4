"""Losses and metrics as one table in long form."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtpeft.api import Logger

COLUMNS = ("event", "stage", "step", "task", "split", "value")


@dataclass
class Csv(Logger):
    """A row for each task's loss of an update, and for each metric of an evaluation; undefined values are empty.

    Attributes:
        file: its name in the run folder. A run that goes on adds to it.
    """

    file: str = "log.csv"

    def open(self, folder: Path) -> None:
        self.stream = (folder / self.file).open("a", newline="", encoding="utf-8")
        self.rows = csv.writer(self.stream)
        if self.stream.tell() == 0:
            self.rows.writerow(COLUMNS)

    def log(self, event: dict[str, Any]) -> None:
        self.rows.writerows(_rows(event))
        self.stream.flush()

    def close(self) -> None:
        self.stream.close()


def _rows(event: dict[str, Any]) -> Iterator[list[Any]]:
    at = [event["event"], event.get("stage"), event.get("step")]
    if event["event"] == "update":
        yield from ([*at, task, "train", loss] for task, loss in event["losses"].items())
    elif event["event"] == "evaluate":
        yield [*at, event["task"], event["split"], event["value"]]
