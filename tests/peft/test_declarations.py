"""Declarations: one value of a method, each of which somebody reads."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest

import mtpeft
from mtpeft.api import Declarations, Method
from mtpeft.peft.declarations import CATEGORIES
from mtpeft.plugins import registry, resolve

FIELDS = [field.name for field in dataclasses.fields(Declarations)]
KIT = Path(mtpeft.__file__).parent / "testing"


def read(path: Path) -> set[str]:
    """Fields that a file reads of ``declares``, by attribute of that name: ``method.declares.paper``."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            holder = node.value
            name = holder.attr if isinstance(holder, ast.Attribute) else getattr(holder, "id", None)
            found |= {node.attr} if name == "declares" else set()
    return found


@pytest.mark.parametrize("name", FIELDS)
def test_every_declaration_has_a_caller(name: str) -> None:
    callers = [path for path in KIT.parent.rglob("*.py") if KIT not in path.parents and name in read(path)]
    held = [path for path in KIT.rglob("*.py") if name in read(path)]
    assert callers, f"the core never reads {name}"
    assert held or name in ("families", "paper"), f"the kit never looks at {name}"


def test_the_rule_sees_who_reads(tmp_path: Path) -> None:
    path = tmp_path / "reader.py"
    path.write_text("method.declares.paper\ndeclares.families\nother.mergeable\ndeclares.accepts = ()\n")
    assert read(path) == {"paper", "families"}


def test_a_declaration_that_there_is_not_is_an_error() -> None:
    with pytest.raises(TypeError, match="mergable"):
        Declarations(category="partial", mergable=True)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Declarations().mergeable = True


def test_a_method_that_declares_nothing_has_the_defaults() -> None:
    assert Method.declares == Declarations()
    assert "declares" not in [field.name for field in dataclasses.fields(Method)]


def test_every_built_in_method_is_in_the_folder_of_its_category() -> None:
    references = {id: entry.reference for id, entry in registry("methods").items()}
    built_in = {id: where.split(".")[1] for id, where in references.items() if where.startswith("mtpeft_plugins.")}
    assert {id: resolve("methods", id)().declares.category for id in built_in} == built_in
    assert set(built_in.values()) <= set(CATEGORIES)


@pytest.mark.parametrize(
    ("method", "settings", "expected"),
    [
        ("ssf", {"init": "identity"}, {"identity_at_init": True}),
        ("fourierft", {"init": "normal"}, {"identity_at_init": False}),
        ("spt", {"form": "adapter"}, {"mergeable": False}),
        ("hydra-lora", {"route": "task"}, {"mergeable": True, "needs_task_id": True}),
        ("hydra-lora", {"route": "both"}, {"mergeable": False, "needs_task_id": True}),
    ],
)
def test_where_the_configuration_decides_it_does(method: str, settings: dict, expected: dict) -> None:
    cls = resolve("methods", method)
    assert cls(**settings).declares == dataclasses.replace(cls().declares, **expected) != cls().declares
