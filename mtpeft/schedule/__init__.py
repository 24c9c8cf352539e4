"""When each task is met: streams of events, and the keyed order of samples. Pure Python, no torch."""

from mtpeft.keyed_random import Cursor, key, sample_order, share
from mtpeft.schedule.base import Schedule, TaskSize, full_quota, longest
from mtpeft.schedule.events import Batch, Begin, End, Evaluate, Event, Update

__all__ = [
    "Batch",
    "Begin",
    "Cursor",
    "End",
    "Evaluate",
    "Event",
    "Schedule",
    "TaskSize",
    "Update",
    "full_quota",
    "key",
    "longest",
    "sample_order",
    "share",
]
