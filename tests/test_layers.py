"""Imports run downhill: the rooms of the house in order, read from the source and not from a running program."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = [
    ["errors", "foreign_code", "keyed_random"],
    ["hookspecs", "kinds", "names"],
    ["addresses", "files"],
    ["locks", "toml_text"],
    ["plugin", "settings"],
    ["recipe", "score"],
    ["config"],
    ["plugins"],
    ["backbone"],
    ["peft"],
    ["task"],
    ["data", "hosts"],
    ["evaluation", "balancing", "schedule"],
    ["training"],
    ["reports"],
    ["export", "inspection"],
    ["testing", "bench"],
    ["commands"],
    ["cli"],
]
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
NO_TORCH = [
    "__init__",
    "addresses",
    "api",
    "cli",
    "config",
    "errors",
    "files",
    "foreign_code",
    "hookspecs",
    "keyed_random",
    "kinds",
    "locks",
    "names",
    "plugin",
    "plugins",
    "recipe",
    "schedule",
    "score",
    "settings",
    "toml_text",
]
TORCH = {"torch", "torchvision", "timm"}


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports(path: Path, *, whole: bool = True, typing: bool = False) -> Iterator[str]:
    """Modules that a file imports, ``from a import b`` as ``a.b``; without ``whole`` not in functions.

    Args:
        typing: with what is imported for type checking alone.
    """
    waiting: list[ast.AST] = [ast.parse(path.read_text("utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        inner = ast.iter_child_nodes(node)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and not typing:
            inner = iter(node.orelse)
        if whole or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += inner


def room(path: Path) -> str:
    parts = path.with_suffix("").parts
    return parts[len(parts) - parts[::-1].index("mtpeft")]


def uphill(path: Path) -> list[str]:
    """Imports of a higher room, or of another one beside it."""
    own = room(path)
    named = [name.split(".")[1] for name in imports(path) if name.startswith("mtpeft.")]
    known = [other for other in named if other in LEVEL and other != own]
    return [other for other in known if LEVEL[other] >= LEVEL[own]]


def test_every_module_has_its_room() -> None:
    rooms = {room(path) for path in sources("mtpeft")} - {"__init__", "api"}
    assert rooms == set(LEVEL)


@pytest.mark.parametrize("path", sources("mtpeft"), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_core_imports_downhill(path: Path) -> None:
    if room(path) in LEVEL:
        assert uphill(path) == []
    assert not [name for name in imports(path) if name.split(".")[0] in ("mtpeft_plugins", "mtpeft_tasks")]


def module_of(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[len(parts) - parts[::-1].index("mtpeft") - 1 :]).removesuffix(".__init__")


def graph(paths: list[Path]) -> dict[str, set[str]]:
    """Which module imports which, for type checking too."""
    known = {module_of(path) for path in paths}

    def module(name: str) -> str:
        return name if name in known else name.rpartition(".")[0]

    return {module_of(p): {module(n) for n in imports(p, typing=True)} & known - {module_of(p)} for p in paths}


def circles(edges: dict[str, set[str]]) -> list[str]:
    """The modules that are left when those that import nothing left are taken away, again and again."""
    left = dict(edges)
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    return sorted(left)


def test_no_modules_import_each_other_in_a_circle() -> None:
    paths = [
        path for path in sources("mtpeft") if path.name not in ("__init__.py", "api.py") or len(path.read_text()) > 900
    ]
    assert circles(graph(paths)) == []


def test_the_rule_sees_a_circle_for_type_checking(tmp_path: Path) -> None:
    folder = tmp_path / "mtpeft"
    folder.mkdir()
    (folder / "a.py").write_text("from mtpeft.b import B\n")
    (folder / "b.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from mtpeft.a import A\n")
    (folder / "c.py").write_text("import mtpeft.a\n")
    assert circles(graph(sorted(folder.glob("*.py")))) == ["mtpeft.a", "mtpeft.b", "mtpeft.c"]


@pytest.mark.parametrize("path", sources("mtpeft/peft"), ids=lambda path: path.stem)
def test_the_heart_knows_no_task(path: Path) -> None:
    assert not [name for name in imports(path) if name.startswith("mtpeft.task")]


@pytest.mark.parametrize("package", ["plugins/mtpeft_plugins", "tasks/mtpeft_tasks"])
def test_plugins_and_tasks_come_in_by_the_front_door(package: str) -> None:
    files = sources(package)
    assert files
    own = Path(package).name
    for path in files:
        ours = [name for name in imports(path) if name.split(".")[0].startswith("mtpeft")]
        assert not [name for name in ours if not name.startswith(("mtpeft.api.", f"{own}."))], path


@pytest.mark.parametrize("name", NO_TORCH)
def test_these_rooms_import_no_torch(name: str) -> None:
    files = [path for path in sources("mtpeft") if room(path) == name]
    assert files
    for path in files:
        assert not TORCH & {imported.split(".")[0] for imported in imports(path, whole=False)}, path


def test_the_rule_sees_an_uphill_import(tmp_path: Path) -> None:
    path = tmp_path / "mtpeft" / "peft" / "wrong.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "from typing import TYPE_CHECKING\n"
        "from mtpeft.errors import MtpeftError\n"
        "if TYPE_CHECKING:\n    from mtpeft.training import loop\n"
        "def f():\n    from mtpeft.task import Task\n    import torch\n"
    )
    assert uphill(path) == ["task"]
    assert "torch" in imports(path)
    assert "torch" not in imports(path, whole=False)
