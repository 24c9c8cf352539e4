"""The training log ``events.jsonl``: one JSON object a line, cut back to the saved state when a run is resumed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mtpeft.errors import MtpeftError
from mtpeft.files import explained, within
from mtpeft.training.happenings import Happening


class Log:
    """Appends to a file.

    Args:
        path: the file; created, or cut to ``length`` bytes where it exists.
        length: bytes that belong to the state from which the run goes on.

    Raises:
        MtpeftError: if the file is shorter than that: lines are gone, and are not made up; or a link to elsewhere.
    """

    def __init__(self, path: Path, *, length: int = 0) -> None:
        self.path = path
        with explained(within(path.parent, path.name)):
            size = path.stat().st_size if path.exists() else 0
            if size < length:
                raise MtpeftError(
                    f'"{path}" has {size} bytes, and {length} were written when the run was saved',
                    hint="put the whole file back from a copy, or start again with another --out",
                )
            self.file = path.open("ab")
            self.file.truncate(length)

    def tell(self, happening: Happening) -> None:
        """Write what a resumed run tells as well."""
        if happening.logged:
            self.write(happening.to_json())

    def write(self, event: dict[str, Any]) -> None:
        with explained(self.path):
            self.file.write(json.dumps(event).encode() + b"\n")
            self.file.flush()

    def sync(self) -> int:
        """fsync every line; the length in bytes."""
        with explained(self.path):
            self.file.flush()
            os.fsync(self.file.fileno())
        return self.length

    @property
    def length(self) -> int:
        """Bytes written so far, those before a resume included."""
        return self.file.tell()

    def close(self) -> None:
        self.file.close()
