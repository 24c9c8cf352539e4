"""The contract of a logger, and how a run's are made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtpeft.plugins import create


@dataclass
class Logger(ABC):
    """Subclass as a dataclass: the fields are the settings of a recipe's ``[loggers.ID]`` table.

    A run calls `open` once, then `log` with every event of ``events.jsonl``, then `close`.
    """

    def open(self, folder: Path) -> None:
        """Training begins, or goes on, in this run folder."""

    @abstractmethod
    def log(self, event: dict[str, Any]) -> None:
        """One event, as JSON.

        Args:
            event: ``{"event": "update", "stage", "step", "losses": {task: loss}, ...}`` or
                ``{"event": "evaluate", "stage", "step", "task", "split", "value", "count"}``; others may come to exist.
        """

    def close(self) -> None:
        """Training ended, in whatever way."""


def make_loggers(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Logger]:
    """The loggers of a recipe by id.

    Raises:
        UsageError: for an unknown logger or setting.
    """
    return {id: create("loggers", id, settings, f"loggers.{id}") for id, settings in tables.items()}
