"""Every hook has a caller, read from the source: what nobody asks for is no contract."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtpeft.kinds import CONTRACTS, KINDS
from mtpeft.plugins import OBSERVERS

ROOT = Path(__file__).parents[1]
SOURCES = [path for folder in ("mtpeft", "plugins", "tasks") for path in sorted((ROOT / folder).rglob("*.py"))]
TREES = {path: ast.parse(path.read_text("utf-8")) for path in SOURCES}
ASKS = {"registry", "resolve", "create", "notify"}


def asked_for(tree: ast.AST) -> Iterator[str]:
    """What a module asks the registries for, and the hooks that it calls: first arguments spelled out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ASKS:
                yield node.args[0].value


def hooks() -> list[str]:
    specs = TREES[ROOT / "mtpeft/hookspecs.py"].body
    return [node.name for node in specs if isinstance(node, ast.FunctionDef)]


def test_the_hooks_are_those_that_are_documented_as_kinds_and_observers() -> None:
    assert set(hooks()) == {*(f"register_{kind}" for kind in KINDS), *OBSERVERS}
    assert set(CONTRACTS) < set(KINDS)


@pytest.mark.parametrize("hook", hooks())
def test_every_hook_has_a_caller(hook: str) -> None:
    wanted = hook.removeprefix("register_")
    assert [path for path, tree in TREES.items() if wanted in asked_for(tree)], hook


def test_the_rule_sees_calls_and_no_mere_mention() -> None:
    code = "resolve('heads', x); manager().create('tasks', 1); notify(hook); other('loggers'); 'readers'"
    assert set(asked_for(ast.parse(code))) == {"heads", "tasks"}
