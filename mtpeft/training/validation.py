"""What validation decides: when a stage stops early, and which weights were the best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import fsum
from pathlib import Path
from typing import TYPE_CHECKING

from mtpeft.files import STRICT
from mtpeft.task import Score

if TYPE_CHECKING:
    from mtpeft.training.run import Run

STAGE = "_stage"
"""The folder of the best weights for a whole stage; no task can have this name."""


@dataclass
class Best:
    """The best of a stage so far, in plain values; higher is better in all of them.

    Attributes:
        tasks: each task's best score.
        stage: the scores of the evaluation that was best for the whole stage; None before the first.
        waited: evaluations since then.
    """

    __pydantic_config__ = STRICT

    tasks: dict[str, float] = field(default_factory=dict)
    stage: dict[str, float] | None = None
    waited: int = 0


class Validation:
    """Keeps ``best/TASK`` for each task and, where the run keeps its best, the weights for the whole stage."""

    def __init__(self, run: Run) -> None:
        self.run, self.best = run, Best()

    def begin(self) -> None:
        self.best = Best()

    def update(self, scores: Mapping[str, Score]) -> bool:
        """Take an evaluation of the stage's tasks; whether to stop, for want of improvement."""
        output = self.run.config.output
        values = {name: self.run.signed(name, score.value) for name, score in scores.items() if score.value is not None}
        for name, value in values.items():
            if value > self.best.tasks.get(name, float("-inf")):
                self.keep(name)
                self.best.tasks[name] = value
        if self.best.stage is None or improvement(self.best.stage, values) > 0:
            if output.keep == "best":
                self.keep(STAGE)
            self.best.stage, self.best.waited = values, 0
            return False
        self.best.waited += 1
        return 0 < output.patience <= self.best.waited

    def end(self) -> None:
        """Take the stage's best weights back, where the run keeps its best."""
        folder = self.folder(STAGE)
        if self.run.config.output.keep == "best" and self.best.stage is not None:
            self.run.host.load(folder)

    def keep(self, name: str) -> None:
        self.run.host.save(self.folder(name), self.run.about())

    def folder(self, name: str) -> Path:
        return self.run.folder / "best" / name


def improvement(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """How much better, relatively and summed over tasks, so that it does not matter in which unit each is measured.

    A task's part is ``(after - before) / max(abs(after), abs(before))``; 1 where it was undefined before, -1 where it
    is now.
    """
    return fsum(_relative(before.get(name), after.get(name)) for name in {**before, **after})


def _relative(before: float | None, after: float | None) -> float:
    if before is None or after is None:
        return float(after is not None) - float(before is not None)
    return (after - before) / (max(abs(after), abs(before)) or 1.0)
