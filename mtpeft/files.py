"""The ground floor of files: atomic and hashed writing, and strict reading. Nothing is written or read past it.

A reader finds all of a file or none of it: what is written gets its name only after ``fsync``. Only regular files are
opened, since a FIFO would block for ever; nothing that is read is executed.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from mtpeft.errors import DataError, MtpeftError
from mtpeft.names import brief

if TYPE_CHECKING:
    from pydantic import ConfigDict, TypeAdapter
    from torch import Tensor

_FULL = {errno.ENOSPC, errno.EDQUOT}
_CHUNK = 2**20
_SEAL = "sha256"
_NEW, _OLD = ".mtpeft-new", ".mtpeft-old"
_PLAIN = {"missing": "is missing", "unexpected_keyword_argument": "is not a field of this file"}

STRICT: ConfigDict = {"extra": "forbid", "strict": True, "allow_inf_nan": False}
"""The ``__pydantic_config__`` of dataclasses that `parse` fills."""

T = TypeVar("T")


# --- writing


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the failures of writing ``path`` into sentences.

    Raises:
        MtpeftError: where there is no space, or no permission, to write.
    """
    try:
        yield
    except MtpeftError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and not _is_safetensors(error):
            raise
        number = error.errno if isinstance(error, OSError) else None
        if number in _FULL or "No space left" in str(error):
            hint = "what was saved before is intact; make room and continue with --resume"
            raise MtpeftError(f'no space left on the disk to write "{path}"', hint=hint) from error
        raise MtpeftError(
            f'cannot write "{path}": {error}', hint="is the place there, and may you write to it?"
        ) from error


def _is_safetensors(error: Exception) -> bool:
    return type(error).__name__ == "SafetensorError"


def sync(path: Path) -> None:
    """fsync a file's bytes, or a folder's names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` in one step; after a failure, the old file is there and no other.

    Raises:
        MtpeftError: where it cannot be written.
    """
    temporary = beside(path, _NEW)
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
    """`write_file` of JSON."""
    write_file(path, (json.dumps(value, indent=2) + "\n").encode())


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with the sha256 of what it says, which `check_seal` checks; the order of keys does not matter."""
    plain = json.loads(json.dumps(unsealed(value)))
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return {**value, _SEAL: sha256(text.encode()).hexdigest()}


def unsealed(data: Any) -> Any:
    """What `sealed` was given; anything else as it is."""
    return {key: item for key, item in data.items() if key != _SEAL} if isinstance(data, Mapping) else data


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file, for a folder that `write_folder` fills and syncs.

    Raises:
        MtpeftError: where it cannot be written.
    """
    from safetensors.torch import save_file

    with explained(path):
        save_file({key: t.detach().cpu().contiguous() for key, t in tensors.items()}, path, metadata)


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Build a folder with ``fill(folder)`` and put it in the place of ``path``; nothing is left of a failure.

    A folder that was there is set aside until the new one has its name; `recover_folder` puts it back after a death in
    between.

    Raises:
        MtpeftError: where it cannot be written.
    """
    temporary, old = beside(path, _NEW), beside(path, _OLD)
    with explained(path):
        recover_folder(path)
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            fill(temporary)
            for place in (*sorted(temporary.rglob("*")), temporary):
                sync(place)
            if path.exists():
                path.rename(old)
            temporary.rename(path)
        except BaseException:
            recover_folder(path)
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)


def recover_folder(path: Path) -> None:
    """Undo a `write_folder` that died between its two renames: the folder that was there gets its name again."""
    old = beside(path, _OLD)
    if old.is_dir():
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(path)


def standing_folder(path: Path) -> Path | None:
    """Where a folder that `write_folder` writes stands, also after a death in between; None where there is none."""
    return next((place for place in (path, beside(path, _OLD)) if place.is_dir()), None)


def beside(path: Path, ending: str) -> Path:
    """Hidden, and with an ending of our own: ``NAME.old`` or ``NAME.tmp`` may well be a user's."""
    return path.with_name(f".{path.name}{ending}")


# --- hashes


def file_sha256(path: Path) -> str:
    """The sha256 of a file, read in pieces."""
    digest = sha256()
    with open_regular(path) as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def inventory(folder: Path) -> dict[str, str]:
    """The sha256 of every file under ``folder``, by its path in it.

    Raises:
        DataError: for a link that leads out of it.
    """
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    return {name: file_sha256(within(folder, name)) for name in names}


# --- reading


def open_regular(path: Path) -> Any:
    """A file opened to read bytes.

    Raises:
        OSError: for what is absent, or is no regular file: a FIFO or device would block, or never end.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no regular file")
    return os.fdopen(handle, "rb")


def within(folder: Path, name: str) -> Path:
    """The path of a file of a folder, which may be a stranger's: nothing outside it is read in its name.

    Raises:
        DataError: for a name, or a link, that leads out of the folder.
    """
    path = folder / name
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # links in a circle, a NUL byte
        inside = False
    if not inside:
        raise DataError(f'"{brief(str(path))}" leads out of its folder', hint="copy what it leads to into the folder")
    return path


def read_bytes(path: Path, missing: str = "give the folder of a run that mtpeft train wrote") -> bytes:
    """
    Args:
        missing: what to do where there is no such file.

    Raises:
        MtpeftError: if the file is absent, no regular file, or cannot be read.
    """
    try:
        with open_regular(path) as file:
            return file.read()
    except FileNotFoundError as error:
        raise MtpeftError(f'there is no "{path}"', hint=missing) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        raise _damaged(path, error) from error


def read_json(path: Path, missing: str = "give the folder of a run that mtpeft train wrote") -> Any:
    """
    Raises:
        MtpeftError: if the file is absent or is no JSON: NaN and Infinity are none.
    """
    data = read_bytes(path, missing)
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from error


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number in JSON")


def read_record(kind: type[T], path: Path, missing: str = "give the folder of a run that mtpeft train wrote") -> T:
    """A JSON file as the dataclass ``kind``, strictly.

    Raises:
        MtpeftError: naming file and field.
    """
    return parse(kind, read_json(path, missing), f'"{path}"')


def check_seal(data: Any, path: Path, *, needed: bool = True) -> Any:
    """What `sealed` was given.

    Args:
        needed: whether it is wrong to have no seal.

    Raises:
        DataError: if it is not what was sealed.
    """
    plain = unsealed(data)
    if isinstance(data, dict) and (needed or _SEAL in data) and sealed(plain)[_SEAL] != data.get(_SEAL):
        by_hand = "" if needed else f'; what is changed by hand goes without its "{_SEAL}"'
        message = f'"{path}" is not what was written: its content has another sha256 than it says'
        raise DataError(message, hint=f"the file is damaged; take it from a copy{by_hand}")
    return plain


def parse(kind: type[T], data: Any, where: str) -> T:
    """Plain values out of JSON as a dataclass ``kind``, whose ``__pydantic_config__`` is `STRICT`.

    Raises:
        DataError: naming ``where`` and the first field that is wrong.
    """
    from pydantic import ValidationError

    try:
        adapter: TypeAdapter[T] = _adapter(cast("Any", kind))
        return adapter.validate_json(json.dumps(data))
    except ValidationError as error:
        problem, more = error.errors()[0], error.error_count() - 1
        name = ".".join(str(step) for step in problem["loc"]) or "the whole"
        reason = _PLAIN.get(problem["type"], problem["msg"][0].lower() + problem["msg"][1:])
        hint = f"{more} more fields are wrong" if more else "compare it with what a training run writes"
        raise DataError(f"{where}: {name}: {reason}", hint=hint) from None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Building one takes longer than all else in `parse`."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def read_tensors(path: Path, missing: str = "the file is damaged; take it from a copy") -> dict[str, Tensor]:
    """A safetensors file; it holds no code, and its header is checked against its size before anything is allocated.

    Raises:
        MtpeftError: if the file is absent, truncated or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        open_regular(path).close()
        return load_file(path)
    except FileNotFoundError as error:
        raise MtpeftError(f'"{path}" is missing', hint=missing) from error
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise DataError(f'"{path}" is truncated or damaged: {error}', hint="take it from a copy") from error


def _damaged(path: Path, error: Exception) -> DataError:
    reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
    return DataError(f'"{path}" cannot be read: {reason}', hint="the file is damaged; take it from a copy")
