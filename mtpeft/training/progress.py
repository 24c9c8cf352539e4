"""What a person sees of a training, on stderr: bars with columns for each task in a terminal, else plain lines."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from contextlib import suppress
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from mtpeft.names import visible
from mtpeft.training.happenings import (
    Evaluated,
    Happening,
    Remark,
    StageBegan,
    StageResumed,
    StoppedEarly,
    Updated,
)


class Progress(ABC):
    """A listener that shows what happens in words; names of others are made visible."""

    def tell(self, happening: Happening) -> None:
        """A stream that is closed, full or broken shows nothing, and stops no training."""
        with suppress(OSError):
            self.draw(happening)

    def draw(self, happening: Happening) -> None:
        match happening:
            case StageBegan():
                self.begin(happening, 0)
            case StageResumed():
                self.begin(happening, happening.step)
            case Updated():
                self.update(happening)
            case Evaluated():
                self.score(happening)
            case StoppedEarly(stage=stage, step=step):
                self.say(f"no task improved on validation: stage {stage + 1} stops at update {step}")
            case Remark(message=message, warning=warning):
                self.say(f"warning: {message}" if warning else message)

    @abstractmethod
    def begin(self, stage: StageBegan | StageResumed, done: int) -> None: ...

    @abstractmethod
    def update(self, update: Updated) -> None: ...

    @abstractmethod
    def score(self, score: Evaluated) -> None: ...

    @abstractmethod
    def say(self, message: str) -> None: ...

    @abstractmethod
    def close(self) -> None: ...


class Quiet:
    """Shows warnings alone."""

    def tell(self, happening: Happening) -> None:
        if isinstance(happening, Remark) and happening.warning:
            _print(f"warning: {happening.message}")

    def close(self) -> None: ...


class Lines(Progress):
    """One plain line every ``seconds``, and one for each evaluation."""

    def __init__(self, seconds: float = 5.0) -> None:
        self.seconds, self.last = seconds, monotonic()
        self.steps = 0

    def begin(self, stage: StageBegan | StageResumed, done: int) -> None:
        self.steps = stage.steps
        more = f", {done} done" if done else ""
        self.say(f"stage {stage.stage + 1}: {', '.join(stage.tasks)}; {stage.steps} updates{more}")

    def update(self, update: Updated) -> None:
        if monotonic() - self.last >= self.seconds or update.step + 1 == self.steps:
            self.last = monotonic()
            losses = "  ".join(f"{name} {value:.4f}" for name, value in update.losses.items())
            self.say(f"stage {update.stage + 1}  {update.step + 1}/{self.steps}  {losses}")

    def score(self, score: Evaluated) -> None:
        self.say(f"{score.split} {score.task}: {show(score.value)} ({score.count} samples)")

    def say(self, message: str) -> None:
        _print(message)

    def close(self) -> None: ...


class Bars(Progress):
    """A bar for the stage, and behind it each task's loss and last metric."""

    def __init__(self, console: Console | None = None) -> None:
        columns = (
            TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[state]}", markup=False),
        )  # fmt: skip
        self.rich = RichProgress(*columns, console=console or Console(stderr=True))
        self.losses: dict[str, float] = {}
        self.metrics: dict[str, str] = {}

    def begin(self, stage: StageBegan | StageResumed, done: int) -> None:
        self.rich.start()
        self.losses = {}
        self.bar = self.rich.add_task(f"stage {stage.stage + 1}", total=stage.steps, completed=done, state="")

    def update(self, update: Updated) -> None:
        self.losses |= update.losses
        self.rich.update(self.bar, completed=update.step + 1, state=self._state())

    def score(self, score: Evaluated) -> None:
        self.metrics[score.task] = f"{score.split} {show(score.value)}"
        self.rich.update(self.bar, state=self._state())

    def _state(self) -> str:
        names = list(dict.fromkeys([*self.losses, *self.metrics]))
        parts = (
            name + (f" loss {self.losses[name]:.3f}" if name in self.losses else "")
            + (f" {self.metrics[name]}" if name in self.metrics else "")
            for name in names
        )  # fmt: skip
        return visible("  ".join(parts))

    def say(self, message: str) -> None:
        self.rich.console.print(visible(message), markup=False, highlight=False)

    def close(self) -> None:
        self.rich.stop()


def show(value: float | None) -> str:
    """A metric for people, in four digits; undefined is a dash.

    >>> show(None), show(93.456), show(0.04567)
    ('-', '93.46', '0.04567')
    """
    return "-" if value is None else f"{value:.4g}"


def choose(*, quiet: bool) -> Quiet | Progress:
    """Bars in a terminal, plain lines elsewhere, warnings alone where ``quiet``."""
    if quiet:
        return Quiet()
    return Bars() if sys.stderr.isatty() else Lines()


def _print(message: str) -> None:
    print(visible(message), file=sys.stderr, flush=True)
