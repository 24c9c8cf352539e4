"""What goes wrong in words: one sentence that carries what the user wrote, and a hint what to do next."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class MtpeftError(Exception):
    """A failure the user can act on (exit code 1).

    Args:
        message: one sentence saying what is wrong with what the user wrote or gave.
        hint: what to do next; shown after an empty line as ``hint: ...``.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.hint = message, hint

    def __str__(self) -> str:
        return f"{self.message}\n\nhint: {self.hint}" if self.hint else self.message


class UsageError(MtpeftError):
    """A command line, recipe or call that cannot be understood (exit code 2)."""

    exit_code = 2


class NotApplicable(MtpeftError):
    """A method or part that makes no sense, or cannot be right, on this backbone or for this task."""


class Diverged(MtpeftError):
    """A training whose losses or gradients are no numbers any more."""


class DataError(MtpeftError):
    """Data that cannot be trained or evaluated on; the message names the file and the field."""


class Stopped(KeyboardInterrupt):
    """A signal asked this process to stop; nothing failed.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}")
        self.number = number

    @property
    def exit_code(self) -> int:
        """As a shell reports a process that died of the signal."""
        return 128 + self.number


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown ``name``: the closest known one, or all there are.

    >>> did_you_mean("lorra", ["lora", "dora"])
    'did you mean "lora"? There is: dora, lora.'
    """
    known = sorted(known)
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    there_is = f"There is: {', '.join(known)}." if known else "There is none."
    return f'did you mean "{close[0]}"? {there_is}' if close else there_is
