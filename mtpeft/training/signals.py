"""Ctrl-C and SIGTERM in a training: a wish that is granted between two updates, within seconds."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from mtpeft.errors import Stopped

GRACE = 8.0
"""Seconds from a SIGTERM until the training is stopped where it stands: schedulers and containers kill after 10."""
_HEARD = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Inside ``with``, in the main thread, the first signal sets ``wanted``; a second Ctrl-C stops at once.

    Args:
        tell: is called when the first arrives.

    Attributes:
        wanted: the number of the signal that asks to stop; 0 for none.
    """

    def __init__(self, tell: Callable[[], None] = lambda: None) -> None:
        self.tell, self.wanted = tell, 0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            numbers = dict.fromkeys(_HEARD, self._heard) | {signal.SIGALRM: self._late}
            self.before = {number: signal.signal(number, handler) for number, handler in numbers.items()}
        return self

    def __exit__(self, *raised: object) -> None:
        if self.before:
            self.patient()
        for number, handler in self.before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self.before = {}

    def check(self) -> None:
        """
        Raises:
            Stopped: where it is asked for.
        """
        if self.wanted:
            raise Stopped(self.wanted)

    def patient(self) -> None:
        """Let what is under way, such as saving, come to its end."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _heard(self, number: int, frame: Any) -> None:
        if self.wanted and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.wanted:
            return
        self.wanted = number
        if number == signal.SIGTERM:
            signal.setitimer(signal.ITIMER_REAL, GRACE)
        with suppress(RuntimeError):  # a signal comes at any moment, perhaps in the middle of a line on stderr
            self.tell()

    def _late(self, number: int, frame: Any) -> None:
        raise Stopped(self.wanted)
