"""What happens in a training, as values, and the one channel on which it is told.

The loop tells; the log, progress, observers and loggers listen. Values that a resumed run repeats stand in fields of
their own, clocks and memory in ``measured``: without ``measured``, its log equals that of an uninterrupted run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any, ClassVar, Protocol


@dataclass(frozen=True)
class Measured:
    """What a clock or a counter said; another run gives other values.

    Attributes:
        seconds: wall time that it took.
        images_per_second: images that went through the host, by wall time; None where none did.
        memory_bytes: peak memory of the accelerator, or of this process; None where it was not looked at.
    """

    seconds: float
    images_per_second: float | None = None
    memory_bytes: int | None = None


class Stopwatch:
    """Measures wall time from its making. It never waits for an accelerator.

    Args:
        images: how many were counted before.
    """

    def __init__(self, images: int = 0) -> None:
        self.started, self.images = perf_counter(), images

    def read(self, images: int, memory_bytes: int | None = None) -> Measured:
        """
        Args:
            images: how many are counted now.
        """
        seconds, more = perf_counter() - self.started, images - self.images
        return Measured(seconds, more / seconds if more and seconds else None, memory_bytes)


@dataclass(frozen=True)
class Happening:
    """One thing that happened.

    Attributes:
        event: its name in the log.
        logged: whether it belongs to the training log: a resumed run tells it once, at the same place.
    """

    event: ClassVar[str] = ""
    logged: ClassVar[bool] = True

    def to_json(self) -> dict[str, Any]:
        """Plain values under ``event`` and the names of the fields."""
        return {"event": self.event, **asdict(self)}


@dataclass(frozen=True)
class RunBegan(Happening):
    """Folder, host and tasks are ready; ``updates`` were made before (0: nothing is trained yet)."""

    event = "run_began"
    logged = False

    folder: str
    tasks: tuple[str, ...]
    updates: int


@dataclass(frozen=True)
class StageBegan(Happening):
    """A stage of ``steps`` updates was entered."""

    event = "stage_began"

    stage: int
    tasks: tuple[str, ...]
    steps: int


@dataclass(frozen=True)
class StageResumed(Happening):
    """A resumed run is in the middle of a stage, ``step`` of whose ``steps`` updates are made."""

    event = "stage_resumed"
    logged = False

    stage: int
    tasks: tuple[str, ...]
    steps: int
    step: int


@dataclass(frozen=True)
class Updated(Happening):
    """One optimizer step was made.

    Attributes:
        losses: each task's mean loss, before its weight.
        norm: of the gradient before clipping.
        learning_rates: of this step, by method, and of ``heads``.
        measured: of its batches and the step.
    """

    event = "update"

    stage: int
    step: int
    losses: Mapping[str, float]
    norm: float
    learning_rates: Mapping[str, float]
    measured: Measured


@dataclass(frozen=True)
class Evaluated(Happening):
    """A task was evaluated after ``step`` updates of a stage; ``value`` is None where its metric is undefined."""

    event = "evaluate"

    stage: int
    split: str
    task: str
    step: int
    value: float | None
    count: int
    measured: Measured


@dataclass(frozen=True)
class StoppedEarly(Happening):
    """No task improved on validation: the rest of the stage's updates is passed over."""

    event = "stopped_early"

    stage: int
    step: int


@dataclass(frozen=True)
class StageEnded(Happening):
    """A stage is finished and all tasks seen are evaluated; ``measured`` since it began, or was resumed."""

    event = "stage_ended"

    stage: int
    tasks: tuple[str, ...]
    measured: Measured


@dataclass(frozen=True)
class Saved(Happening):
    """The state after ``updates`` updates is on the disk."""

    event = "saved"
    logged = False

    updates: int


@dataclass(frozen=True)
class Remark(Happening):
    """A sentence for people; a ``warning`` is shown where progress is not."""

    event = "remark"
    logged = False

    message: str
    warning: bool = False


@dataclass(frozen=True)
class RunEnded(Happening):
    """Adapter and results are on the disk; ``measured`` is of training, in all lives of the run."""

    event = "run_ended"
    logged = False

    folder: str
    updates: int
    measured: Measured


class Listener(Protocol):
    """Is told everything that happens, in order."""

    def tell(self, happening: Happening) -> None: ...

    def close(self) -> None:
        """Nothing more is told."""


class Channel:
    """Tells several listeners, in their order; a listener itself."""

    def __init__(self, *listeners: Listener) -> None:
        self.listeners = list(listeners)

    def tell(self, happening: Happening) -> None:
        for listener in self.listeners:
            listener.tell(happening)

    def close(self) -> None:
        """Close all, the last first."""
        while self.listeners:
            self.listeners.pop().close()
