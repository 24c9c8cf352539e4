"""Where a training stands, in plain values that are saved with the state."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mtpeft.schedule import Begin


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
        updates, images, seconds: of the whole training, evaluation not counted.
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
    updates: int = 0
    images: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    log_bytes: int = 0

    def enter(self, event: Begin) -> None:
        """A stage begins."""
        self.stage, self.tasks, self.steps, self.step = event.stage, event.tasks, event.steps, 0
        self.open, self.stopped = True, False
        self.seen = (*self.seen, *(name for name in event.tasks if name not in self.seen))

    @staticmethod
    def from_json(data: dict[str, Any]) -> Position:
        """What ``asdict`` gave, after JSON."""
        return Position(**data | {name: tuple(data[name]) for name in ("tasks", "seen")})
