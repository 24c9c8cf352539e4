"""Where a training stands, in plain values that are saved with the state."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from mtpeft.schedule import Begin


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

    updates: int = 0
    images: int = 0
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

    events: int = 0
    stage: int = -1
    tasks: tuple[str, ...] = ()
    steps: int = 0
    step: int = 0
    open: bool = False
    stopped: bool = False
    seen: tuple[str, ...] = ()
    drawn: dict[str, int] = field(default_factory=dict)
    trained: dict[str, int] = field(default_factory=dict)
    parameters: int = 0
    updates: int = 0
    images: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    update_seconds: float = 0.0
    before: Spent = field(default_factory=Spent)
    log_bytes: int = 0

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

    @staticmethod
    def from_json(data: dict[str, Any]) -> Position:
        """What ``asdict`` gave, after JSON."""
        lists = {name: tuple(data[name]) for name in ("tasks", "seen")}
        return Position(**data | lists | {"before": Spent(**data["before"])})
