"""Installs packages with one plugin module each, as pip would leave them."""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import dedent

HOOKIMPL = "from mtpeft.api import hookimpl\n"


def registers(kind: str, **references: str) -> str:
    """An entry module that registers these ids."""
    return f"{HOOKIMPL}@hookimpl\ndef register_{kind}():\n    return {references}\n"


class Packages:
    """A folder on ``sys.path``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modules: list[str] = []

    def install(
        self, distribution: str, code: str, *, version: str = "1.2", plugin: str = "", things: str = ""
    ) -> None:
        """A package with an entry module, and the module ``DISTRIBUTION_things`` that it may refer to."""
        module = distribution.replace("-", "_")
        for name, source in ((module, code), (f"{module}_things", things)):
            self.modules.append(name)
            (self.folder / f"{name}.py").write_text(dedent(source))
        info = self.folder / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[mtpeft]\n{plugin or distribution} = {module}\n")

    def forget(self) -> None:
        for module in self.modules:
            sys.modules.pop(module, None)
