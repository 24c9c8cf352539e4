"""What every file of the built-in methods keeps to, so that any of them could be a stranger's package."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import mtpeft_plugins
from mtpeft.peft.declarations import CATEGORIES

ROOT = Path(mtpeft_plugins.__file__).parent
FILES = sorted(ROOT.glob("*/*.py"))
METHODS = [path for path in FILES if path.parent.name in CATEGORIES]


def siblings(path: Path, source: str) -> Iterator[tuple[str, str]]:
    """Category and module of each built-in method that a file imports."""
    for node in ast.walk(ast.parse(source, str(path))):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for module in modules:
            if module.startswith("mtpeft_plugins"):
                _, category, name = (*module.split("."), "", "")[:3]
                yield category, name


def foreign(path: Path, source: str) -> list[tuple[str, str]]:
    """Imports from another category."""
    return [(category, name) for category, name in siblings(path, source) if category != path.parent.name]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_category_imports_none_of_another(path: Path):
    assert foreign(path, path.read_text()) == [], "what categories share is in mtpeft.peft.stock"


def test_the_rule_sees_an_import_of_another_category():
    path = ROOT / "unified" / "made_up.py"
    source = "from mtpeft_plugins.partial.lora import Lora\nimport mtpeft_plugins.addition.prefix\n"
    assert foreign(path, source) == [("partial", "lora"), ("addition", "prefix")]
    assert foreign(path, "from mtpeft_plugins.unified.noah import Noah\nimport torch\n") == []


def test_a_class_name_of_methods_means_one_thing():
    homes = defaultdict(list)
    for path in METHODS:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(f"{path.parent.name}/{path.stem}")
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}
