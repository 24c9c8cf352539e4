"""The training log ``events.jsonl``: one JSON object a line, cut back to the saved state when a run is resumed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mtpeft.files import explained


class Log:
    """Appends to a file.

    Args:
        path: the file; created, or cut to ``length`` bytes where it exists.
        length: bytes that belong to the state from which the run goes on.
    """

    def __init__(self, path: Path, *, length: int = 0) -> None:
        self.path = path
        with explained(path):
            self.file = path.open("ab")
            self.file.truncate(length)

    def write(self, event: dict[str, Any]) -> None:
        with explained(self.path):
            self.file.write(json.dumps(event).encode() + b"\n")
            self.file.flush()

    def sync(self) -> int:
        """Put every line on the disk; the length in bytes."""
        with explained(self.path):
            self.file.flush()
            os.fsync(self.file.fileno())
        return self.file.tell()

    def close(self) -> None:
        self.file.close()
