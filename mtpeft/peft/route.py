"""Routes: which task each sample belongs to, and what a part can know while a pass runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from mtpeft.errors import NotApplicable


@dataclass(frozen=True)
class Segment:
    """A contiguous slice of the batch, all of one task (None: task not known)."""

    task: str | None
    start: int
    stop: int


@dataclass(frozen=True)
class Route:
    """The segments of one pass; always covering the batch from 0 to its size."""

    segments: tuple[Segment, ...]

    @property
    def size(self) -> int:
        return self.segments[-1].stop

    @property
    def tasks(self) -> tuple[str | None, ...]:
        return tuple(dict.fromkeys(s.task for s in self.segments))

    @property
    def whole(self) -> Segment:
        """All samples, under the task of the first."""
        return Segment(self.segments[0].task, 0, self.size)

    @staticmethod
    def single(task: str | None, size: int) -> Route:
        return Route((Segment(task, 0, size),))

    @staticmethod
    def of(sizes: Mapping[str, int]) -> Route:
        """So many samples of each task, one task after another."""
        stops = list(accumulate(sizes.values()))
        starts = [0, *stops]
        return Route(tuple(Segment(*one) for one in zip(sizes, starts, stops, strict=False)))

    @staticmethod
    def sorted(tasks: Sequence[str | None]) -> tuple[Route, list[int]]:
        """One segment for each task of a mixed batch, and the order that makes its samples contiguous."""
        names = list(dict.fromkeys(tasks))
        order = sorted(range(len(tasks)), key=lambda i: names.index(tasks[i]))
        segments, start = [], 0
        for name in names:
            stop = start + sum(task == name for task in tasks)
            segments.append(Segment(name, start, stop))
            start = stop
        return Route(tuple(segments)), order


@dataclass
class TokenLayout:
    """How tokens lie in a pass: prefix tokens first, then a grid of ``height`` x ``width``.

    ``height`` and ``width`` are 0 where the grid changes from block to block; ``image`` is the images' height and
    width.
    """

    prefix: int = 0
    height: int = 0
    width: int = 0
    image: tuple[int, int] = (0, 0)

    def grid(self, count: int) -> tuple[int, int, int]:
        """How ``count`` tokens of a sequence lie: ``(p, height, width)`` with ``p`` tokens before the grid.

        Extra tokens of other parts count among those before it. Where the grid changes between blocks, it has the
        images' proportions.

        Raises:
            NotApplicable: where the tokens make no such grid.
        """
        if self.height:
            return count - self.height * self.width, self.height, self.width
        high, wide = self.image
        height = round((count * high / max(wide, 1)) ** 0.5)
        if not height or count % height:
            raise NotApplicable(
                f"{count} tokens of a {high} x {wide} image make no grid that a convolution could run over"
            )
        return 0, height, count // height


@dataclass
class Pass:
    """One run of the backbone under a route, with what its parts share.

    Attributes:
        scratch: `PassState.scratch_key` -> what parts leave for later ones.
        one_plan: all segments have one and the same plan, so every part sees the whole batch at once.
        first: index of the pass's first segment, where a batch is run in one pass per task.
        views: what each segment reads in place of shared parameters (`mtpeft.peft.gradients`), or None.
        carried: tokens on their way from one block to the next.
        taps: outputs of the blocks, channels last; None where nobody asked.
        given: per-sample tensors ``(B, ...)`` for parts, by name.
        fork: where the pass splits into one copy for each task; None where it does not.
    """

    route: Route
    layout: TokenLayout = field(default_factory=TokenLayout)
    first: int = 0
    views: Any = None
    scratch: dict[Any, dict[str, Any]] = field(default_factory=dict)
    one_plan: bool = True
    carried: Any = None
    taps: list[Any] | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    fork: Fork | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy starts without what parts left here."""
        return {**vars(self), "views": None, "scratch": {}, "carried": None, "taps": None, "given": {}}


@dataclass(frozen=True)
class Fork:
    """Several tasks on the same images run as one until their parts first differ.

    Attributes:
        block: path of the block before which each task gets its own copy of its samples.
        route: behind the fork.
        rows: which sample each row of the route is a copy of.
        size: samples before the fork, fewer than there are rows.
    """

    block: str
    route: Route
    rows: tuple[int, ...]
    size: int


@dataclass
class PassState:
    """The one mutable place that parts, hooks and host share.

    Attributes:
        now: the pass in progress.
        task: the task in force, for parts that keep something for each task.
        tagging: blocks' inputs carry their pass, because a checkpoint may run a block again when another pass is
            current.
        merged: the parts are folded into the weights, so none of them acts.
        ran: parts seen running, while someone watches.
        scratch_key: segment, method and owner of the running part.
        rows: the samples that it sees.
    """

    current: Pass = field(default_factory=lambda: Pass(Route.single(None, 0)))
    scratch_key: tuple[int, str, str] = (0, "", "")
    rows: slice = field(default_factory=lambda: slice(None))
    task: str | None = None
    tagging: bool = False
    merged: bool = False
    seen_running: set[int] | None = None

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Inside, no part acts; afterwards the pass in progress goes on."""
        before, self.merged = (self.merged, self.current, self.task), True
        try:
            yield
        finally:
            self.merged, self.current, self.task = before

    def enter(self, current: Pass) -> None:
        self.current, self.task = current, current.route.segments[0].task
