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
        """``(segment index, segment, plan)``, neighbours with one and the same plan joined."""
        now = self.cell.now
        found: list[tuple[int, Segment, tuple[Placed, ...]]] = []
        for index, segment in enumerate(now.route.segments):
            plan = self.active(segment.task)
            if found and found[-1][2] == plan and not self._apart(plan):
                first, before, _ = found.pop()
                segment, index = Segment(before.task, before.start, segment.stop), first - now.first
            found.append((now.first + index, segment, plan))
        return found

    def _apart(self, plan: tuple[Placed, ...]) -> bool:
        return (self.cell.now.views is not None and bool(plan)) or any(p.per_task for p in plan)

    @contextmanager
    def using(self, placed: Placed, index: int, task: str | None) -> Iterator[Part]:
        """The part with the segment's task in force and, where gradients are kept apart, the segment's parameters."""
        cell = self.cell
        if cell.ran is not None:
            cell.ran.add(id(placed.part))
        before, cell.task = cell.task, task
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
