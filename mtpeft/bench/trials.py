"""The smallest piece of a comparison: one training, or one test of what was trained, and what it left on the disk."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mtpeft.training.disk import read_json, write_json

TOGETHER = "all"
"""Stands for the task of a trial that trains every task in one run."""


@dataclass(frozen=True)
class Trial:
    """One training of a method on a task.

    Attributes:
        method: as ``--method`` takes it.
        task: a task's name, or `TOGETHER`.
        lr: learning rate; None for the method's own.
        split: which split its scores are of: ``val`` to choose by, ``test`` to report.
    """

    method: str
    task: str
    lr: float | None
    seed: int
    split: Literal["val", "test"]

    def place(self, folder: Path) -> Path:
        """Where under ``folder`` it is kept, without a suffix."""
        rate = "own" if self.lr is None else f"{self.lr:g}"
        return folder / self.method / self.task / f"{self.split}-{rate.replace('.', '_')}-{self.seed}"

    def __str__(self) -> str:
        rate = "" if self.lr is None else f", lr {self.lr:g}"
        return f"{self.method} on {self.task}{rate}, seed {self.seed}, {self.split}"


@dataclass
class Record:
    """What a trial gave.

    Attributes:
        scores: each task's metric on the trial's split; None where it is undefined.
        costs: of the training, as in ``results.json``; empty where nothing was trained.
        memory_bytes: by how much the process grew while training; None where not measured.
        error: why there are no scores; empty where there are.
    """

    scores: dict[str, float | None] = field(default_factory=dict)
    costs: dict[str, Any] = field(default_factory=dict)
    memory_bytes: int | None = None
    error: str = ""


def keep(trial: Trial, record: Record, folder: Path) -> None:
    """Write a record where `find` finds it."""
    path = trial.place(folder).with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"trial": asdict(trial), **asdict(record)})


def find(trial: Trial, folder: Path) -> Record | None:
    """What is kept of a trial, or None if it was not made.

    Raises:
        MtpeftError: for a damaged file.
    """
    path = trial.place(folder).with_suffix(".json")
    if not path.is_file():
        return None
    kept = read_json(path)
    del kept["trial"]
    return Record(**kept)
