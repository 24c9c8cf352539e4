"""Slots: the parts that meet at one place, and which of them act for each task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mtpeft.peft.parts import Part
from mtpeft.peft.route import Cell, Segment
from mtpeft.peft.sites import Site


@dataclass(frozen=True, eq=False)
class Placed:
    """A part at a site, with the method and owner it belongs to. Two are equal if their part is the same."""

    part: Part
    site: Site
    method: str
    owner: str
    per_task: bool

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Placed) and self.part is other.part

    def __hash__(self) -> int:
        return id(self.part)


@dataclass(eq=False)
class Slot:
    """Parts of one kind at one place. ``plans`` says, for each task, which act and in what order."""

    cell: Cell
    plans: dict[str | None, tuple[Placed, ...]] = field(default_factory=dict)

    def active(self, task: str | None) -> tuple[Placed, ...]:
        return () if self.cell.merged else self.plans.get(task, ())

    @property
    def in_force(self) -> tuple[Placed, ...]:
        """The plan of the task in force; for slots whose segments all agree."""
        return self.active(self.cell.task)

    def stretches(self) -> list[tuple[int, Segment, tuple[Placed, ...]]]:
        """``(segment index, segment, plan)``; one for the whole batch where all segments have one plan."""
        now = self.cell.now
        segments = now.route.segments
        if now.joined:
            segments = (Segment(segments[0].task, 0, now.route.size),)
        return [(now.first + index, segment, self.active(segment.task)) for index, segment in enumerate(segments)]

    @contextmanager
    def using(self, placed: Placed, index: int, task: str | None) -> Iterator[Any]:
        """The part with the segment's task in force and, where gradients are kept apart, the segment's parameters.

        No type is promised: each kind of part is called in a way of its own.
        """
        cell = self.cell
        if cell.ran is not None:
            cell.ran.add(id(placed.part))
        before, cell.task = cell.task, task
        cell.stretch = (index, placed.method, placed.owner)
        views = cell.now.views
        try:
            if views is None:
                yield placed.part
            else:
                with views.using(placed.part, index):
                    yield placed.part
        finally:
            cell.task = before

    def run(self, placed: Placed, index: int, task: str | None, *args: Any) -> Any:
        with self.using(placed, index, task) as part:
            return part(*args)
