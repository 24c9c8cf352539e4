"""The built-in methods: one file each, in a folder for its category, found by scanning.

``CATEGORY/some_method.py`` holds the class ``SomeMethod``, registered as ``some-method``; nothing is imported for that.
"""

from __future__ import annotations

from pathlib import Path

from mtpeft.api import hookimpl


@hookimpl
def register_methods() -> dict[str, str]:
    return dict(_method(path) for path in sorted(Path(__file__).parent.glob("*/[!_]*.py")))


def _method(path: Path) -> tuple[str, str]:
    name = "".join(word.capitalize() for word in path.stem.split("_"))
    return path.stem.replace("_", "-"), f"{__name__}.{path.parent.name}.{path.stem}:{name}"
