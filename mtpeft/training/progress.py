"""What a person sees of a training, on stderr: bars with columns for each task in a terminal, else plain lines."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from mtpeft.task import Score


class Progress(Protocol):
    """Told of everything that happens, in order."""

    def begin(self, stage: int, tasks: Sequence[str], steps: int, done: int) -> None: ...

    def step(self, step: int, losses: Mapping[str, float]) -> None: ...

    def score(self, task: str, split: str, score: Score) -> None: ...

    def say(self, message: str) -> None: ...

    def close(self) -> None: ...


class Quiet:
    """Says nothing."""

    def begin(self, stage: int, tasks: Sequence[str], steps: int, done: int) -> None: ...

    def step(self, step: int, losses: Mapping[str, float]) -> None: ...

    def score(self, task: str, split: str, score: Score) -> None: ...

    def say(self, message: str) -> None: ...

    def close(self) -> None: ...


class Lines:
    """One plain line every ``seconds``, and one for each evaluation."""

    def __init__(self, seconds: float = 5.0) -> None:
        self.seconds, self.last = seconds, monotonic()
        self.stage, self.steps = 0, 0

    def begin(self, stage: int, tasks: Sequence[str], steps: int, done: int) -> None:
        self.stage, self.steps = stage, steps
        self.say(f"stage {stage + 1}: {', '.join(tasks)}; {steps} updates" + (f", {done} done" if done else ""))

    def step(self, step: int, losses: Mapping[str, float]) -> None:
        if monotonic() - self.last >= self.seconds or step + 1 == self.steps:
            self.last = monotonic()
            self.say(f"stage {self.stage + 1}  {step + 1}/{self.steps}  {_losses(losses)}")

    def score(self, task: str, split: str, score: Score) -> None:
        self.say(f"{split} {task}: {show(score.value)} ({score.count} samples)")

    def say(self, message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    def close(self) -> None: ...


class Bars:
    """A bar for the stage, and behind it each task's loss and last metric."""

    def __init__(self, console: Console | None = None) -> None:
        columns = (
            TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[state]}"),
        )  # fmt: skip
        self.rich = RichProgress(*columns, console=console or Console(stderr=True))
        self.losses: dict[str, float] = {}
        self.metrics: dict[str, str] = {}

    def begin(self, stage: int, tasks: Sequence[str], steps: int, done: int) -> None:
        self.rich.start()
        self.losses = {}
        self.bar = self.rich.add_task(f"stage {stage + 1}", total=steps, completed=done, state="")

    def step(self, step: int, losses: Mapping[str, float]) -> None:
        self.losses |= losses
        self.rich.update(self.bar, completed=step + 1, state=self._state())

    def score(self, task: str, split: str, score: Score) -> None:
        self.metrics[task] = f"{split} {show(score.value)}"
        self.rich.update(self.bar, state=self._state())

    def _state(self) -> str:
        names = list(dict.fromkeys([*self.losses, *self.metrics]))
        return "  ".join(
            f"{name}" + (f" loss {self.losses[name]:.3f}" if name in self.losses else "")
            + (f" {self.metrics[name]}" if name in self.metrics else "")
            for name in names
        )  # fmt: skip

    def say(self, message: str) -> None:
        self.rich.console.print(message, markup=False, highlight=False)

    def close(self) -> None:
        self.rich.stop()


def show(value: float | None) -> str:
    """A metric for people, in four digits; undefined is a dash.

    >>> show(None), show(93.456), show(0.04567)
    ('-', '93.46', '0.04567')
    """
    return "-" if value is None else f"{value:.4g}"


def choose(*, quiet: bool) -> Progress:
    """Bars in a terminal, plain lines elsewhere, nothing where ``quiet``."""
    if quiet:
        return Quiet()
    return Bars() if sys.stderr.isatty() else Lines()


def _losses(losses: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
