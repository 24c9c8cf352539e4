"""Mounts: the parts that meet at one place, and which of them act for each task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mtpeft.peft.parts import Part
from mtpeft.peft.route import PassState, Segment
from mtpeft.peft.sites import Site


@dataclass(frozen=True, eq=False)
class PartAtSite:
    """A part at a site, with the method and owner it belongs to. Two are equal if their part is the same."""

    part: Part
    site: Site
    method: str
    owner: str
    per_task: bool

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PartAtSite) and self.part is other.part

    def __hash__(self) -> int:
        return id(self.part)


@dataclass(eq=False)
class Mount:
    """Parts of one kind at one place. ``plans`` says, for each task, which act and in what order."""

    pass_state: PassState
    plans: dict[str | None, tuple[PartAtSite, ...]] = field(default_factory=dict)

    def active(self, task: str | None) -> tuple[PartAtSite, ...]:
        return () if self.pass_state.merged else self.plans.get(task, ())

    @property
    def in_force(self) -> tuple[PartAtSite, ...]:
        """The plan of the task in force; for mounts whose segments all agree."""
        return self.active(self.pass_state.task)

    def spans(self) -> list[tuple[int, Segment, tuple[PartAtSite, ...]]]:
        """``(segment index, segment, plan)``; one for the whole batch where all segments have one plan."""
        current = self.pass_state.current
        segments = (current.route.whole,) if current.one_plan else current.route.segments
        return [(current.first + index, segment, self.active(segment.task)) for index, segment in enumerate(segments)]

    def whole(self, task: str | None) -> tuple[int, Segment]:
        """Index of the pass's first segment, and the whole batch under ``task``: for what no row can be told of."""
        current = self.pass_state.current
        return current.first, Segment(task, 0, current.route.size)

    @contextmanager
    def using(self, placed: PartAtSite, index: int, segment: Segment) -> Iterator[Any]:
        """The part with the segment's task in force and, where gradients are kept apart, the segment's parameters.

        No type is promised: each kind of part is called in a way of its own.
        """
        pass_state = self.pass_state
        if pass_state.seen_running is not None:
            pass_state.seen_running.add(id(placed.part))
        # a part may call modules whose own parts run meanwhile
        before = pass_state.task, pass_state.scratch_key, pass_state.rows
        pass_state.task, pass_state.rows = segment.task, slice(segment.start, segment.stop)
        pass_state.scratch_key = (index, placed.method, placed.owner)
        views = pass_state.current.views
        try:
            if views is None:
                yield placed.part
            else:
                with views.using(placed.part, index):
                    yield placed.part
        finally:
            pass_state.task, pass_state.scratch_key, pass_state.rows = before

    def run(self, placed: PartAtSite, index: int, segment: Segment, *args: Any) -> Any:
        with self.using(placed, index, segment) as part:
            return part(*args)
