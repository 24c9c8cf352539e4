"""The built-in plugins: one thing, one file, in a folder for its kind, found by scanning; nothing is imported for that.

``FOLDER/some_thing.py`` holds the class ``SomeThing``, registered as ``some-thing``; abbreviations are words too
(``uw.py`` holds ``Uw``). Methods have several folders, one for each category.
"""

from __future__ import annotations

from pathlib import Path

from mtpeft.api import hookimpl

CATEGORIES = ("addition", "partial", "unified", "multitask", "continual")


@hookimpl
def register_methods() -> dict[str, str]:
    return _scan(*CATEGORIES)


@hookimpl
def register_schedules() -> dict[str, str]:
    return _scan("schedules")


@hookimpl
def register_balancers() -> dict[str, str]:
    return _scan("balancing")


@hookimpl
def register_optimizers() -> dict[str, str]:
    return _scan("optimizers")


@hookimpl
def register_loggers() -> dict[str, str]:
    return _scan("loggers")


@hookimpl
def register_exporters() -> dict[str, str]:
    return _scan("exporters")


@hookimpl
def register_backbones() -> dict[str, str]:
    return {"micro": "mtpeft.backbone.micro:micro"}  # the core embeds its weights


def _scan(*folders: str) -> dict[str, str]:
    paths = (path for folder in folders for path in sorted((Path(__file__).parent / folder).glob("[!_]*.py")))
    return {path.stem.replace("_", "-"): _reference(path) for path in paths}


def _reference(path: Path) -> str:
    name = "".join(word.capitalize() for word in path.stem.split("_"))
    return f"{__name__}.{path.parent.name}.{path.stem}:{name}"
