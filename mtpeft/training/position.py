"""Where a training stands, in plain values that are saved with the state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated

from pydantic import Field

from mtpeft.data.shared_images import together
from mtpeft.errors import DataError
from mtpeft.files import STRICT
from mtpeft.schedule import Begin
from mtpeft.settings import Whole
from mtpeft.task import Task


@dataclass(frozen=True)
class Spent:
    """What was spent between two moments of a training, evaluation not counted.

    Attributes:
        updates: optimizer steps.
        images: trained on, each visit counted.
        seconds: wall time, hooks of methods included.
        cpu_seconds: of the same, all threads together.
        update_seconds: wall time of batches and steps alone.
    """

    __pydantic_config__ = STRICT

    updates: Whole = 0
    images: Whole = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    update_seconds: float = 0.0


@dataclass
class Position:
    """Where a training stands.

    Attributes:
        events: events of the schedule that are done.
        stage, tasks, steps: the last `Begin`.
        step: updates made in this stage.
        open: between `Begin` and `End`.
        stopped: this stage was stopped early; the rest of its updates is passed over.
        seen: tasks met so far.
        drawn: training samples drawn of each task.
        trained: owner, or ``head:NAME``, -> the last stage in which it trained.
        parameters: trained in this stage.
        updates, images, seconds, cpu_seconds, update_seconds: of the whole training, as in `Spent`.
        before: the same when this stage began.
        log_bytes: length of the log.
    """

    __pydantic_config__ = STRICT

    events: Whole = 0
    stage: Annotated[int, Field(ge=-1)] = -1
    tasks: tuple[str, ...] = ()
    steps: Whole = 0
    step: Whole = 0
    open: bool = False
    stopped: bool = False
    seen: tuple[str, ...] = ()
    drawn: dict[str, Whole] = field(default_factory=dict)
    trained: dict[str, int] = field(default_factory=dict)
    parameters: Whole = 0
    updates: Whole = 0
    images: Whole = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    update_seconds: float = 0.0
    before: Spent = field(default_factory=Spent)
    log_bytes: Whole = 0

    def enter(self, event: Begin) -> None:
        """A stage begins."""
        self.stage, self.tasks, self.steps, self.step = event.stage, event.tasks, event.steps, 0
        self.open, self.stopped, self.parameters = True, False, 0
        self.before = self._total()
        self.seen = (*self.seen, *(name for name in event.tasks if name not in self.seen))

    def spent(self) -> Spent:
        """In this stage."""
        now, before = asdict(self._total()), asdict(self.before)
        return Spent(**{name: now[name] - before[name] for name in now})

    def _total(self) -> Spent:
        return Spent(**{f.name: getattr(self, f.name) for f in fields(Spent)})

    def check(self, tasks: Mapping[str, Task], stages: int) -> None:
        """
        Raises:
            DataError: for a task or stage that the run does not have.
        """
        sources = {*tasks, *together(tasks, list(tasks))}
        unknown = [name for name in (*self.tasks, *self.seen) if name not in tasks]
        unknown += [name for name in self.drawn if name not in sources]
        if unknown or self.stage >= stages:
            what = f'a task "{unknown[0]}"' if unknown else f"a stage {self.stage}"
            raise DataError(f"the saved position is in {what}, which this run does not have", hint="take its own run")
