"""stdout and stderr that are closed, full or broken: silence or one sentence, never a traceback."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO


def prepare() -> None:
    """Open closed streams on the null device, and let stdout spell out letters that its encoding lacks."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123 - for the process's life
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def deliver(stream: TextIO) -> OSError | None:
    """Flush a stream; why it could not be, and then what is left in it is discarded."""
    try:
        stream.flush()
    except OSError as error:
        discard(stream)
        return error
    return None


def discard(stream: TextIO) -> None:
    """Send what is left in a broken stream to the null device, or Python fails to flush it at its exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
