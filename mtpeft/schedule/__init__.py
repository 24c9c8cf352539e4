"""When each task is met: streams of events, and the keyed order of samples. Pure Python, no torch."""

from mtpeft.keyed_random import Cursor, key, sample_order, share
from mtpeft.schedule.base import Schedule, TaskSize
from mtpeft.schedule.events import Batch, Begin, End, Evaluate, Event, Update

builtin: dict[str, str] = {
    "joint": "mtpeft.schedule.joint:Joint",
    "sequential": "mtpeft.schedule.sequential:Sequential",
    "interleaved": "mtpeft.schedule.interleaved:Interleaved",
}
"""The schedules that come with mtpeft, as the hook ``register_schedules`` gives them."""

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
    "builtin",
    "key",
    "sample_order",
    "share",
]
