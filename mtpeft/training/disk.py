"""Writing files so that a reader finds either all of a file or none of it."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mtpeft.errors import MtpeftError

_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the failures of writing ``path`` into sentences.

    Raises:
        MtpeftError: where there is no space, or no permission, to write.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else None
        if number in _FULL or "No space left" in str(error):
            hint = "what was saved before is intact; make room and continue with --resume"
            raise MtpeftError(f'no space left on the disk to write "{path}"', hint=hint) from error
        raise MtpeftError(
            f'cannot write "{path}": {error}', hint="is the place there, and may you write to it?"
        ) from error


def sync(path: Path) -> None:
    """Have the system put a file's bytes, or a folder's names, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` in one step; after a failure, the old file is there and no other."""
    temporary = path.with_name(path.name + ".tmp")
    with explained(path):
        try:
            temporary.write_bytes(data)
            sync(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    write_file(path, (json.dumps(value, indent=2) + "\n").encode())


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Build a folder with ``fill(folder)`` and put it in the place of ``path``; nothing is left of a failure."""
    temporary = path.with_name(path.name + ".tmp")
    old = path.with_name(path.name + ".old")
    with explained(path):
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            fill(temporary)
            for place in (*sorted(temporary.rglob("*")), temporary):
                sync(place)
            if path.exists():
                shutil.rmtree(old, ignore_errors=True)
                path.rename(old)
            temporary.rename(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)


def inventory(folder: Path) -> dict[str, str]:
    """The sha256 of every file under ``folder``, by its path in it."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): sha256(file.read_bytes()).hexdigest() for file in files}


def read_json(path: Path) -> Any:
    """
    Raises:
        MtpeftError: if the file is absent or is no JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise MtpeftError(f'there is no "{path}"', hint="give the folder of a run that mtpeft train wrote") from error
    except (ValueError, OSError) as error:
        raise MtpeftError(
            f'"{path}" cannot be read: {error}', hint="the file is damaged; take it from a copy"
        ) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """
    Raises:
        MtpeftError: if the file is absent, truncated or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise MtpeftError(
            f'"{path}" cannot be read: {error}', hint="the file is damaged; take it from a copy"
        ) from error
