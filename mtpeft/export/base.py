"""The contract of an exporter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from mtpeft.training.run import Run


@dataclass(frozen=True)
class Exported:
    """What an exporter wrote.

    Attributes:
        how: how it is loaded, for people: Python with comments.
        about: the same for machines, as JSON.
    """

    how: str
    about: dict[str, Any]


@dataclass
class Exporter(ABC):
    """Subclass as a dataclass. ``mtpeft export --to ID`` makes one and calls `export`.

    Attributes:
        suffix: of the files it writes.
    """

    suffix: ClassVar[str]

    @abstractmethod
    def export(self, run: Run, task: str, path: Path) -> Exported:
        """Write a task of a trained run to ``path``; neither the file nor its folder need exist.

        Raises:
            NotApplicable: where it cannot be written in this format, and why; nothing is left behind then.
        """
