"""The smallest piece of a comparison: one training, or one test of what was trained, and what it left on the disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from mtpeft.errors import MtpeftError
from mtpeft.training.log import Log

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

    def folder(self, root: Path) -> Path:
        """Where all trials of its method on its task are."""
        return root / self.method / self.task

    def run_folder(self, root: Path, config: str) -> Path:
        """Where its run is, while it is needed.

        Args:
            config: what identifies its configuration, see `Record`.
        """
        rate = "own" if self.lr is None else f"{self.lr:g}"
        return self.folder(root) / f"{self.split}-{rate}-{self.seed}-{config[:12]}"

    def __str__(self) -> str:
        rate = "" if self.lr is None else f", lr {self.lr:g}"
        return f"{self.method} on {self.task}{rate}, seed {self.seed}, {self.split}"


@dataclass
class Record:
    """What a trial gave.

    Attributes:
        scores: each task's metric on the trial's split; None where it is undefined.
        costs: of the training, as in ``results.json``; empty where nothing was trained.
        seconds: of training: CPU time of all threads together, or wall time where an accelerator works.
        memory_bytes: by how much the process grew while training; None where not measured.
        over_stages: of a sequence that was tested after each stage: ``average_incremental`` and ``forgetting``.
        error: why there are no scores; empty where there are.
        config: sha256 of the configuration that it was made with; empty in records that are older than this field.
    """

    scores: dict[str, float | None] = field(default_factory=dict)
    costs: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    memory_bytes: int | None = None
    over_stages: dict[str, float | None] = field(default_factory=dict)
    error: str = ""
    config: str = ""


class Records:
    """What was made, in one file: a line for each trial. A line that was cut off is dropped.

    Raises:
        MtpeftError: for a damaged file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, Lock()
        self.made: dict[Trial, dict[str, Record]] = {}
        self.length = 0
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True) if path.exists() else [], 1):
            if line.endswith(b"\n"):
                self._keep(*self._parsed(line, number))
                self.length += len(line)

    def get(self, trial: Trial, config: Callable[[Trial], str]) -> Record | None:
        """The record of a trial that was made with the configuration that it has now.

        A record that does not say with which it was made counts as made with any: the plan that is kept beside the
        records (`remember`) is what speaks for it.

        Args:
            config: identifies the configuration that a trial has now; asked only where something was made.
        """
        by_config = self.made.get(trial, {})
        old = by_config.get("")
        return by_config.get(config(trial), old) if by_config.keys() - {""} else old

    def add(self, trial: Trial, record: Record) -> None:
        """Put a trial on the disk, from whichever thread."""
        with self.lock:
            log = Log(self.path, length=self.length)
            log.write({"trial": asdict(trial), **asdict(record)})
            self.length = log.sync()
            log.close()
            self._keep(trial, record)

    def _keep(self, trial: Trial, record: Record) -> None:
        self.made.setdefault(trial, {})[record.config] = record

    def _parsed(self, line: bytes, number: int) -> tuple[Trial, Record]:
        try:
            kept = json.loads(line)
            return Trial(**kept.pop("trial")), Record(**kept)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise MtpeftError(
                f'"{self.path}", line {number} is damaged', hint="delete that line; it runs again"
            ) from None
