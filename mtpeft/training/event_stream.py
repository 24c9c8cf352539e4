"""A schedule's events, read once: by the loop, and ahead of it by the loader of batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice, tee

from mtpeft.schedule import Batch, Begin, End, Event


class EventStream:
    """Iterate for the events; `quotas` runs ahead within the stage that is open.

    Args:
        events: the whole schedule.
        done: how many of them are done already.
    """

    def __init__(self, events: Iterable[Event], done: int = 0) -> None:
        self._events, self._ahead = tee(islice(iter(events), done, None))

    def __iter__(self) -> Iterator[Event]:
        return self._events

    def quotas(self, begin: Begin | None = None) -> Iterator[Mapping[str, int]]:
        """The quotas of the rest of a stage.

        Args:
            begin: the event that opens it; None for the stage in whose middle the stream starts.
        """
        if begin is not None:  # a stage that was stopped early left its rest ahead
            for event in self._ahead:
                if event == begin:
                    break
        for event in self._ahead:
            if isinstance(event, End):
                return
            if isinstance(event, Batch):
                yield event.quota
