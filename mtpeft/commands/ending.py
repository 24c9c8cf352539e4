"""How a command ends other than well: interrupted, or with one sentence and a hint."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import typer

from mtpeft.errors import MtpeftError, Stopped
from mtpeft.names import visible


class Interrupted(MtpeftError):
    """Ctrl-C or SIGTERM: nothing failed, and a run that was saved can go on.

    Args:
        cause: what stopped it.
    """

    def __init__(self, cause: BaseException, hint: str = "") -> None:
        super().__init__("interrupted", hint=hint)
        self.exit_code = cause.exit_code if isinstance(cause, Stopped) else 128 + signal.SIGINT


@contextmanager
def resumable(folder: Path, dry_run: bool) -> Iterator[None]:
    """Where a training is interrupted, say how it goes on."""
    try:
        yield
    except KeyboardInterrupt as error:
        saved = not dry_run and (folder / "state").is_dir()
        hint = f"`mtpeft train --resume --out {folder}` goes on from the last saved update." if saved else ""
        raise Interrupted(error, hint) from None


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM, which schedulers send, ends a command as Ctrl-C does."""

    def stop(number: int, frame: Any) -> None:
        raise Stopped(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


# Typer hands out its parser's errors under no public name; this is the base of the one that it does.
_BadUsage: type[Exception] = typer.BadParameter.__mro__[1]


def as_error(error: Exception) -> MtpeftError:
    """Any exception as what `show` shows."""
    if isinstance(error, MtpeftError):
        return error
    if isinstance(error, _BadUsage):
        return _usage_error(error)
    from mtpeft.plugins import in_words

    return MtpeftError(in_words(error), hint="`mtpeft --debug ...` shows where it happened")


def _usage_error(error: Any) -> MtpeftError:
    command = error.ctx.command_path if error.ctx else "mtpeft"
    shown = MtpeftError(error.format_message(), hint=f"`{command} --help` shows how it is called.")
    shown.exit_code = 2
    return shown


def show(error: MtpeftError) -> None:
    """Print an error on stderr: one sentence, an empty line, the hint; in colour on a terminal without ``NO_COLOR``.

    Where stderr is broken, the exit code says it alone.
    """
    colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    red, cyan, end = ("\033[1;31m", "\033[1;36m", "\033[0m") if colour else ("", "", "")
    with suppress(OSError):
        print(f"{red}error:{end} {visible(error.message)}", file=sys.stderr)
        if error.hint:
            print(f"\n{cyan}hint:{end} {visible(error.hint)}", file=sys.stderr)


def refuse_deleted_folder() -> None:
    """
    Raises:
        MtpeftError: where the current folder is gone: libraries would end the program without a word.
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        raise MtpeftError("the current folder does not exist any more", hint="cd to one that does") from None
