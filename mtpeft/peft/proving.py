"""Every part is proved live: one probing pass for each set of parts that acts together shows which of them ran."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mtpeft.errors import NotApplicable
from mtpeft.peft.mounts import PartAtSite
from mtpeft.peft.route import PassState

Parts = tuple[PartAtSite, ...]


class Proofs:
    """Which sets of parts were seen running.

    Args:
        pass_state: of the host.
        probe: runs the host once for a task, on an empty image.
    """

    def __init__(self, pass_state: PassState, probe: Callable[[str | None], None]) -> None:
        self.pass_state, self.probe = pass_state, probe
        self.seen: set[tuple[tuple[str, str], ...]] = set()

    def prove(self, plans: Iterable[tuple[str | None, Parts]], family: str) -> None:
        """Run once for every kind of plan that was not seen before.

        Raises:
            NotApplicable: where a part did not run.
        """
        for task, parts in plans:
            kind = tuple((part.method, part.site.name) for part in parts)
            if not parts or kind in self.seen or (task is None and any(part.per_task for part in parts)):
                continue
            running = self._seen_running(task)
            idle = next((part for part in parts if id(part.part) not in running), None)
            if idle is not None:
                raise NotApplicable(f"{idle.method} has a part at {idle.site.name} that {family} never runs")
            self.seen.add(kind)

    def _seen_running(self, task: str | None) -> set[int]:
        """The parts that run in a pass for ``task``."""
        self.pass_state.seen_running = set()
        try:
            self.probe(task)
            return self.pass_state.seen_running
        finally:
            self.pass_state.seen_running = None
