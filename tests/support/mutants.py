"""One line of the tree changed, to see that a test notices."""

from __future__ import annotations
import __future__

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import dedent
from typing import Any
from unittest.mock import patch


@dataclass(frozen=True)
class Mutant:
    """``owner.name`` with ``old`` replaced by ``new`` in its source, where it must stand exactly once.

    Attributes:
        owner: a class or a module.
    """

    owner: Any
    name: str
    old: str
    new: str

    @contextmanager
    def alive(self) -> Iterator[None]:
        """While inside, it is in force."""
        original = getattr(self.owner, self.name)
        source = dedent(inspect.getsource(original))
        assert source.count(self.old) == 1, f"{self.name} has no such line any more: {self.old}"
        names: dict[str, Any] = {}
        code = compile(source.replace(self.old, self.new), "mutant", "exec", __future__.annotations.compiler_flag)
        exec(code, vars(sys.modules[original.__module__]) | {"__class__": self.owner}, names)
        with patch.object(self.owner, self.name, names[self.name]):
            yield
