"""The code blocks of the documents run, and the walk to a first method ends at a conforming one."""

from __future__ import annotations

import re
import shlex
import sys
import types
from pathlib import Path

import pytest

from mtpeft import plugins
from mtpeft.cli import app
from mtpeft.testing import parametrize_with_checks

ROOT = Path(__file__).parents[1]


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), re.S)


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("README.md", "python")
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["logits"].shape == (4, 2)
    assert (tmp_path / "pets-adapter" / "adapter.json").is_file()


def walk() -> types.ModuleType:
    """The module that CONTRIBUTING.md tells its reader to write."""
    module = types.ModuleType("walk_gained")
    sys.modules["walk_gained"] = module
    exec(compile(blocks("CONTRIBUTING.md", "python")[0], "CONTRIBUTING.md", "exec"), module.__dict__)
    return module


@parametrize_with_checks([walk().Gained], ["vit", "swin"], slow=False)
def test_the_method_of_the_walk_conforms(check):
    check()


def test_the_plugin_of_the_walk_registers():
    names: dict = {}
    exec(compile(blocks("CONTRIBUTING.md", "python")[1], "CONTRIBUTING.md", "exec"), names)
    plugin = types.SimpleNamespace(register_methods=names["register_methods"])
    plugins.manager().register(plugin, "mtpeft-gained")
    assert plugins.registry("methods")["gained"].reference == "mtpeft_gained.gained:Gained"


def test_every_method_of_the_table_of_kinds_exists():
    table = (ROOT / "CONTRIBUTING.md").read_text().split("| kind | you write |")[1].split("\n\n")[0]
    named = {name for row in table.splitlines()[2:] for name in re.findall(r"`([a-z-]+)`", row.rsplit("|", 2)[1])}
    assert named <= set(plugins.registry("methods"))


def test_every_room_of_the_map_exists():
    table = (ROOT / "CONTRIBUTING.md").read_text().split("| room |")[1].split("\n\n")[0]
    for row in table.splitlines()[2:]:
        places = re.findall(r"`([^`]+)`", row.split("|")[1])
        base = Path(places[0]).parent if not places[0].endswith("/") else Path("mtpeft")
        for place in places:
            assert (ROOT / place).exists() or (ROOT / base / place).exists(), place


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_every_link_leads_somewhere(document):
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / document).read_text()):
        assert (ROOT / target).exists(), target


def commands() -> list[str]:
    text = "\n".join(blocks("README.md", "bash")) + "\n".join(
        re.findall(r"`(mtpeft [^`]+)`", (ROOT / "README.md").read_text())
    )
    return sorted({line.split("#")[0].strip() for line in text.splitlines() if line.startswith("mtpeft ")})


@pytest.mark.parametrize("line", [c for c in commands() if "COMMAND" not in c])
def test_the_command_lines_of_the_readme_are_understood(line):
    import typer

    group = typer.main.get_command(app)
    words = [word.removesuffix("...") for word in shlex.split(line)[1:]]
    if words == ["--help"]:
        return
    command = group.commands[words[0]]
    command.make_context(words[0], list(words[1:]))
