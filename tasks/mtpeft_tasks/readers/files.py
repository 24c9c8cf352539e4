"""What the readers share: opening images, finding files, dividing them into splits, hashing what was found."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar

from PIL import Image

from mtpeft.api import DataError, UsageError, did_you_mean, open_regular
from mtpeft_tasks.readers import walk
from mtpeft_tasks.transforms import orientation, to_rgb

IMAGES = ("images", "JPEGImages", "img")
"""How layouts that keep images apart from their labels name the folder of images."""
HELD_OUT = {"test": 0.2, "val": 0.1}
Item = TypeVar("Item")


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A regular file as bytes to read: a FIFO, a device or a socket would block for ever.

    Raises:
        DataError: naming the file, where it is missing, cannot be opened, or is none.
    """
    try:
        file = open_regular(path)
    except FileNotFoundError:
        raise DataError(f'"{path}" does not exist', hint="add it, or correct the name") from None
    except (OSError, ValueError) as error:  # the last: a NUL in the path
        said = getattr(error, "strerror", None) or error
        raise DataError(f'"{path}" cannot be read: {said}', hint="put a regular file there") from None
    with file:
        yield file


def read_bytes(path: Path) -> bytes:
    """What is in a regular file.

    Raises:
        DataError: naming the file.
    """
    with opened(path) as file:
        try:
            return file.read()
        except OSError as error:
            raise DataError(f'"{path}" cannot be read: {error.strerror}', hint="replace the file") from None


def beginning(path: Path, size: int) -> bytes:
    """The first bytes of a regular file; nothing of any other."""
    try:
        with opened(path) as file:
            return file.read(size)
    except (DataError, OSError):
        return b""


def origin(path: Path) -> str:
    """What an image file is known by, wherever links lead to it from."""
    return os.path.realpath(path)


def read_image(path: Path) -> Image.Image:
    """An upright RGB image. Asked for the same file again, it is not decoded again: several tasks may label it.

    Raises:
        DataError: naming the file, where it is missing, truncated or no image.
    """
    try:
        status = path.stat()
    except (OSError, ValueError):  # the last: a NUL in the path
        return _read_image(path, ())
    return _read_image(path, (status.st_ino, status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=1)
def _read_image(path: Path, state: tuple[int, ...]) -> Image.Image:
    """``state`` tells the file from what was there before."""
    image = decode(path)
    try:
        return to_rgb(image)
    except Exception as error:
        raise _unreadable(path, error) from None


def loaded(name: str, load: Callable[[], Image.Image]) -> Image.Image:
    """An upright RGB image from what another library opens.

    Raises:
        DataError: with the name it is known by.
    """
    try:
        with load() as image:
            image.load()
            return to_rgb(image)
    except Exception as error:
        raise _unreadable(name, error) from None


def decode(path: Path) -> Image.Image:
    """An image as it is stored, decoded to the end.

    Raises:
        DataError: naming the file.
    """
    try:
        with open_regular(path) as file, Image.open(file, formats=walk.formats()) as image:
            image.load()
            return image
    except Exception as error:  # on damaged bytes decoders raise nearly anything
        raise _unreadable(path, error) from None


def image_size(path: Path | str, content: bytes | None = None) -> tuple[int, int]:
    """Height and width of the upright image, from its header alone.

    Args:
        path: of its file.
        content: what is in the file, where it lies somewhere else; ``path`` is then what it is known by.

    Raises:
        DataError: naming the file.
    """
    try:
        file = open_regular(Path(path)) if content is None else BytesIO(content)
        with file, Image.open(file, formats=walk.formats()) as image:
            turned = orientation(image) >= 5 and image.format != "TIFF"  # of a TIFF, Pillow gives the upright size
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path | str, error: Exception) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f'image "{path}" does not exist', hint="check the path, or the list that names it")
    said = getattr(error, "strerror", None) or str(error).split("\n")[0]
    reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else said
    return DataError(f'image "{path}" cannot be read: {reason}', hint="remove the file or replace it")


def reason(error: BaseException) -> str:
    """What another library says is wrong, in one sentence; some errors say no more than their name."""
    while error.__cause__ is not None:
        error = error.__cause__
    said = " ".join(str(error).split()).split(". ")[0]
    named = isinstance(error, LookupError | AssertionError) or not said
    return f"{type(error).__name__} {said}".strip() if named else said


WHERE = "check the path: in a recipe it is relative to the recipe's folder, in a flag to this one"


def folder(path: str | Path) -> Path:
    """An existing folder.

    Raises:
        DataError: where there is none.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        raise DataError(f'data folder "{path}" does not exist', hint=WHERE)
    return path


def existing(path: str | Path) -> Path:
    """A file or folder that is there.

    Raises:
        DataError: where it is not.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise DataError(f'data "{path}" does not exist', hint=WHERE)
    return path


def inside(root: Path, name: str, where: str) -> Path:
    """What a list or annotation names, under the data's root; links are followed, but ``..`` may not lead out.

    Args:
        root: the folder that names are relative to.
        where: the file and entry that name it, for the message, e.g. ``"train.txt", entry 3``.

    Raises:
        DataError: for a name that is empty, absolute or outside the root, and where there is nothing of that name.
    """
    path = root / name
    absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute()
    try:
        if absolute or (".." in path.parts and not path.resolve().is_relative_to(root.resolve())):
            hint = f'write the path relative to "{root}", and below it'
            raise DataError(f'{where}: "{name}" is outside of the data', hint=hint)
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f'{where}: there is no file "{name}"', hint=f'paths are relative to "{root}"') from None
    except (OSError, ValueError, RuntimeError) as error:  # a loop of links, a null byte, a name too long
        message = f'{where}: "{name}" cannot be opened: {getattr(error, "strerror", None) or error}'
        raise DataError(message, hint="correct the name, or its links") from None
    if not name.strip():
        raise DataError(f"{where} names no file", hint=f'give its path relative to "{root}"')
    return path


def first_file(root: Path, names: Iterable[str]) -> Path | None:
    """The first of these files that is there."""
    return next((root / name for name in names if (root / name).is_file()), None)


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, stripped, without empty ones.

    Raises:
        DataError: where it is not UTF-8 text, or cannot be read.
    """
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f'list "{path}" is not UTF-8 text', hint="write one entry per line") from None
    lines = text.replace("\r", "\n").split("\n")
    return [line.strip() for line in lines if line.strip()]


def read_names(path: Path) -> tuple[str, ...]:
    """The lines of a list in which each stands once: classes, or the files of a split.

    Raises:
        DataError: where it is not UTF-8 text, is empty, or has a line twice.
    """
    names = read_lines(path)
    if not names:
        raise DataError(f'list "{path}" is empty', hint="write one name per line")
    before: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if before.setdefault(name, number) != number:
            message = f'list "{path}", entry {number}: "{name}" is entry {before[name]} too'
            raise DataError(message, hint="keep one of the two")
    return tuple(names)


def asked_classes(known: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """The wanted classes in the order of the known ones; all where none is named.

    Raises:
        UsageError: for a class that the data does not have.
    """
    there, chosen = frozenset(known), frozenset(wanted)
    for name in wanted:
        if name not in there:
            raise UsageError(f'the data has no class "{name}"', hint=did_you_mean(name, known))
    return tuple(name for name in known if name in chosen) if wanted else tuple(known)


def repeated(names: Iterable[str]) -> list[str]:
    """The names that stand more than once, in order."""
    return [name for name, count in Counter(names).items() if count > 1]


def fill_splits(splits: Mapping[str, Sequence[Item]], groups: Mapping[Item, Hashable], seed: int) -> dict[str, list]:
    """Hold a test split (20 %) and a validation split (10 %) out of ``train`` where the data has none.

    What is held out is stratified by group and a function of the items' names and the seed alone.

    Args:
        splits: those that the data has.
        groups: the class of every item of ``train``; items are named by ``str``.
    """
    filled = {name: list(items) for name, items in splits.items()}
    for name in ("test", "val"):
        if name not in filled and filled.get("train"):
            held = _hold_out(filled["train"], groups, HELD_OUT[name], f"{name}:{seed}")
            filled[name] = [item for item in filled["train"] if item in held]
            filled["train"] = [item for item in filled["train"] if item not in held]
    return filled


def _hold_out(items: Sequence[Item], groups: Mapping[Item, Hashable], fraction: float, key: str) -> set[Item]:
    members: dict[Hashable, list[Item]] = {}
    for item in items:
        members.setdefault(groups[item], []).append(item)
    held: set[Item] = set()
    for group in members.values():
        group.sort(key=lambda item: hashlib.sha256(_encoded(f"{key}:{item}")).digest())
        held.update(group[: max(1, round(fraction * len(group))) if len(group) > 1 else 0])
    return held


def stated(*paths: Path) -> str:
    """The sha256 of files, by their content: another image of the same name and size is another image."""
    return " ".join(_content(str(path), *_seen(path.stat())) for path in paths)


def _seen(stat: os.stat_result) -> tuple[int, int, int, int]:
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


@lru_cache(maxsize=2**20)
def _content(path: str, *seen: int) -> str:
    """Read once while nothing about the file changes: a manifest is asked for several times."""
    with open(path, "rb") as file:  # noqa: PTH123 - a path as text is the key
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(lines: Iterable[str]) -> str:
    """The sha256 of a list of files and labels."""
    return hashlib.sha256(_encoded("\n".join(lines))).hexdigest()


def _encoded(text: str) -> bytes:
    """UTF-8, or the bytes that a file's name is made of where it is none."""
    return text.encode("utf-8", "surrogateescape")
