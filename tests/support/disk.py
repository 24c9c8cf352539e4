"""What happens before a file operation: a count, a death, or a full disk.

Python announces its operations to audit hooks; fsync and safetensors, which do not announce themselves, are wrapped.
A hook cannot be taken away again: it does nothing while no `Operations` is in force.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch

from mtpeft import files

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_NAMED = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}
_MAKES = {"open", "os.mkdir", "write", "fsync"}
_in_force: list[Operations] = []


class Operations:
    """Counts the operations that write below a folder, or beside it, and calls ``act(name, number)`` before each."""

    def __init__(self, folder: Path, act: Callable[[str, int], None] = lambda name, number: None) -> None:
        self.folder, self.act, self.count = str(folder), act, 0

    def __enter__(self) -> Operations:
        self.kept = files.sync, safetensors.torch.save_file
        files.sync = self.before("fsync", lambda path: None)  # what a process wrote survives its death without
        safetensors.torch.save_file = self.before("write", self.kept[1], position=1)
        _in_force.append(self)
        return self

    def __exit__(self, *raised: object) -> None:
        _in_force.remove(self)
        files.sync, safetensors.torch.save_file = self.kept

    def before(self, name: str, function: Callable[..., Any], position: int = 0) -> Callable[..., Any]:
        def wrapped(*given: Any, **named: Any) -> Any:
            self.meet(name, given[position])
            return function(*given, **named)

        return wrapped

    def meet(self, name: str, path: Any) -> None:
        if isinstance(path, int) or self.folder in os.fsdecode(path) or not Path(os.fsdecode(path)).is_absolute():
            self.count += 1
            self.act(name, self.count)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _in_force:
        return
    if event in _NAMED or (event == "open" and isinstance(arguments[0], str | bytes) and arguments[2] & _WRITES):
        _in_force[-1].meet(event, arguments[0])


sys.addaudithook(_hook)


def full_from(start: int) -> Callable[[str, int], None]:
    """From operation ``start`` on, there is no space for anything new; what is there can be renamed and removed."""

    def act(name: str, number: int) -> None:
        if number >= start and name in _MAKES:
            raise OSError(errno.ENOSPC, "No space left on device")

    return act


def broken_at(start: int) -> Callable[[str, int], None]:
    """Operation ``start`` fails, and none after it."""

    def act(name: str, number: int) -> None:
        if number == start:
            raise OSError(errno.EIO, "Input/output error")

    return act


def interrupted_at(start: int) -> Callable[[str, int], None]:
    """A second Ctrl-C arrives before operation ``start``."""

    def act(name: str, number: int) -> None:
        if number == start:
            raise KeyboardInterrupt

    return act


def dead_at(start: int) -> Callable[[str, int], None]:
    """The process dies before operation ``start``."""

    def act(name: str, number: int) -> None:
        if number == start:
            os._exit(9)

    return act
