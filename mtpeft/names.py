"""Names: what tasks and heads may be called, and text of others made visible before a person sees it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from mtpeft.errors import UsageError

SHARED = "shared"
"""The owner of parts that every task trains. No task may have this name."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_LONGEST = 100
"""Characters of a name: it becomes part of a file's name, and file systems take 255 bytes."""
_LONGEST_QUOTED = 200
"""Characters of what a sentence carries of another text."""
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories that move a cursor, break a line, reorder text or show nothing."""


def check_task_name(name: str, others: Iterable[str] = ()) -> None:
    """Refuse what cannot name a task.

    Args:
        others: the names that are taken. Two that differ in case alone would share files on some disks.

    Raises:
        UsageError: for a name of other characters, too long, reserved or taken.
    """
    if name == SHARED or not _NAME.fullmatch(name):
        raise UsageError(
            f'a task cannot be called "{visible(name)}"',
            hint=f'letters, digits, "-" and "_", beginning with a letter or digit; "{SHARED}" is what all tasks own',
        )
    _check_length(name, "task")
    for other in others:
        if name == other:
            raise UsageError(f'there are two tasks named "{name}"', hint="give each task a name of its own")
        if name.lower() == other.lower():
            raise UsageError(
                f'the tasks "{other}" and "{name}" differ in case alone',
                hint="some disks would keep both in one file: give one of them another name",
            )


def check_head_name(name: str) -> None:
    """Refuse what cannot name a head, which is a file.

    Raises:
        UsageError: for an empty name, one with slashes or control characters, or one too long.
    """
    if not name or set(name) & set("/\\") or visible(name) != name:
        raise UsageError(f'"{visible(name)}" cannot name a head', hint="it names a file: leave slashes out")
    _check_length(name, "head")


def _check_length(name: str, what: str) -> None:
    if len(name.encode()) > _LONGEST:
        raise UsageError(
            f'the {what} name "{name[:20]}..." is {len(name.encode())} bytes long',
            hint=f"it becomes a file's name: use at most {_LONGEST}",
        )


def visible(text: str) -> str:
    r"""Text that others wrote, harmless on a terminal: what would move the cursor, break a line or hide is spelt out.

    >>> print(visible("cat\n\x1b[31mdog"))
    cat\n\x1b[31mdog
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_spelt(letter) if unicodedata.category(letter) in _HIDDEN else letter for letter in text)


def brief(text: str) -> str:
    """`visible` text for a sentence, the end of a long one left out."""
    text = visible(text)
    return text if len(text) <= _LONGEST_QUOTED else f"{text[: _LONGEST_QUOTED - 3]}..."


def visible_lines(text: str) -> str:
    """A text of several lines that others wrote, each of them `visible`."""
    return "\n".join(map(visible, text.split("\n")))


def _spelt(letter: str) -> str:
    return letter.encode("unicode_escape", "surrogatepass").decode()
