"""What is known of one plugin: who brought it, and what went wrong."""

from __future__ import annotations

from dataclasses import dataclass

from mtpeft.names import visible

IN_PROCESS = "registered in this process"


@dataclass
class Plugin:
    """One plugin, loaded or not.

    Attributes:
        distribution: the installed package that brought it, or `IN_PROCESS`.
        state: ``loaded``, ``failed`` (it raised, or is built for another API version), ``incomplete`` (some of what it
            registers cannot be used) or ``wrong`` (it has a hook that there is not).
        seconds: what importing it took.
        hooks: the hooks it implements.
        changed: the global state that it changed and that was set back.
        error: what went wrong, empty if nothing.
        hint: what to do about it.
    """

    name: str
    distribution: str
    version: str = ""
    state: str = "loaded"
    seconds: float = 0.0
    hooks: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    error: str = ""
    hint: str = ""

    def __str__(self) -> str:
        package = f"{self.distribution} {self.version}".strip()
        return visible(f'"{self.name}" ({package})')

    @property
    def left_out(self) -> str:
        """What is said of one that failed, in whole or in part; empty for others."""
        how = {"failed": "left out", "incomplete": "left out in part"}.get(self.state)
        return f"plugin {self} is {how}: {self.error}" if how else ""

    @property
    def remedy(self) -> str:
        """What to do when its code raises."""
        if self.distribution == IN_PROCESS:
            return "repair the object that was registered"
        return f"upgrade or remove {self.distribution}: pip install -U {self.distribution}"

    def fail(self, error: str, hint: str, state: str = "failed") -> None:
        self.state, self.error, self.hint = state, error, hint


def in_words(error: BaseException) -> str:
    """An exception of others on one line: its type and message."""
    try:
        message = " ".join(str(error).split())
    except Exception:
        message = "(its message cannot be shown)"
    return visible(f"{type(error).__name__}: {message}").removesuffix(": ")
