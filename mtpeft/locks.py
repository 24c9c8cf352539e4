"""The right to write to a folder: one process has it at a time."""

from __future__ import annotations

import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from mtpeft.errors import MtpeftError
from mtpeft.files import beside, explained

_LOCK = ".mtpeft-lock"


class Lock:
    """The right of this process to write to a folder: taken when made, and released by `release` or death.

    A process may take it several times, and then releases it as often. The lock lies beside the folder.

    Args:
        path: the folder, which need not exist; by whatever name, it is one folder.

    Raises:
        MtpeftError: naming the host and process that hold it.
    """

    held: ClassVar[dict[Path, tuple[int, int]]] = {}
    """Each lock's file: its handle, and how often it is taken."""

    def __init__(self, path: Path) -> None:
        folder = path.resolve()
        self.file, self.parent_is_new = beside(folder, _LOCK), not folder.parent.exists()
        with explained(self.file):
            handle, count = self.held.get(self.file, (-1, 0))
            if not count:
                folder.parent.mkdir(parents=True, exist_ok=True)
                handle = _locked_file(self.file, path)
        self.held[self.file] = handle, count + 1
        self.taken = True

    def release(self) -> None:
        """Let others write; once released, it stays so."""
        if not self.taken or self.file not in self.held:
            return
        self.taken, (handle, count) = False, self.held.pop(self.file)
        if count > 1:
            self.held[self.file] = handle, count - 1
            return
        with suppress(OSError):
            self.file.unlink()
            if self.parent_is_new:
                self.file.parent.rmdir()  # where nothing was written
        os.close(handle)


def _forget_locks() -> None:
    """A child of ``fork`` shares the open files of its parent: it must not keep a dead parent's lock."""
    for handle, _ in Lock.held.values():
        os.close(handle)
    Lock.held.clear()


os.register_at_fork(after_in_child=_forget_locks)


def _locked_file(place: Path, path: Path) -> int:
    """An open, locked file under its own name: a holder unlinks it when it is done, and others may wait on that."""
    while True:
        handle = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(handle, 200).decode("utf-8", "replace").strip()
            os.close(handle)
            raise MtpeftError(
                f'"{path}" is being written by {holder or "another process"}',
                hint="wait until it ends, stop it, or give another --out",
            ) from None
        with suppress(FileNotFoundError):
            if os.fstat(handle).st_ino == place.stat().st_ino:
                os.truncate(handle, 0)
                os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return handle
        os.close(handle)
