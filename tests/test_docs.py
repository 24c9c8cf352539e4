"""The code blocks of the documents run, and the walk to a first method ends at a conforming one."""

from __future__ import annotations

import json
import re
import shlex
import sys
import types
from pathlib import Path

import pytest
import timm
import torch

import mtpeft
from mtpeft import plugins
from mtpeft.api import Context, hookimpl
from mtpeft.cli import app, main
from mtpeft.testing import check_task, parametrize_with_checks

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


def walk(first: str) -> types.ModuleType:
    """A module that CONTRIBUTING.md tells its reader to write: the one whose docstring begins so."""
    (code,) = [block for block in blocks("CONTRIBUTING.md", "python") if block.startswith(f'"""{first}')]
    module = types.ModuleType(f"walk_{first.split()[0].strip(':').lower()}")
    sys.modules[module.__name__] = module
    exec(compile(code, "CONTRIBUTING.md", "exec"), module.__dict__)
    return module


@parametrize_with_checks([walk("Gained").Gained], ["vit", "swin"], slow=False)
def test_the_method_of_the_walk_conforms(check):
    check()


def test_the_plugin_of_the_walk_registers():
    names: dict = {}
    exec(compile(blocks("CONTRIBUTING.md", "python")[1], "CONTRIBUTING.md", "exec"), names)
    plugin = types.SimpleNamespace(register_methods=names["register_methods"])
    plugins.manager().register(plugin, "mtpeft-gained")
    assert plugins.registry("methods")["gained"].reference == "mtpeft_gained.gained:Gained"


class Walked:
    """The routine, the balancer and the task type of the walks, as a plugin."""

    def __init__(self) -> None:
        self.modules = {first: walk(first) for first in ("Anchor", "Hardest", "The task type")}

    @hookimpl
    def register_methods(self) -> dict[str, str]:
        return {"anchor": f"{self.modules['Anchor'].__name__}:Anchor"}

    @hookimpl
    def register_balancers(self) -> dict[str, str]:
        return {"hardest": f"{self.modules['Hardest'].__name__}:Hardest"}

    @hookimpl
    def register_tasks(self) -> dict[str, str]:
        return {"brightness": f"{self.modules['The task type'].__name__}:Brightness"}


def test_what_the_walks_build_trains_together(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    plugins.manager().register(Walked(), "walks")
    line = ["train", "--tasks", "brightness,cls", "--method", "lora+anchor", "--balance", "hardest", "--steps", "2"]
    assert main([*line, "--schedule", "sequential", "--out", "run", "--quiet", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["tasks"]["brightness"]["metric"] == "RMSE" and printed["costs"]["statistics_bytes"] > 0
    assert (tmp_path / "run" / "adapter" / "method.anchor.safetensors").is_file()


def test_the_routine_of_the_walk_pulls_on_what_has_moved():
    anchor = walk("Anchor").Anchor(strength=2.0)
    host = mtpeft.adapt(timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1), "lora", ["a"])
    routine = anchor.routine()
    context = Context(host, ("a",), stage=1)
    routine.begin_stage(context)
    assert float(routine.penalty(context).detach()) == 0
    with torch.no_grad():
        for parameter in host.shared_parameters().values():
            parameter.add_(1)
    count = sum(parameter.numel() for parameter in host.shared_parameters().values())
    assert float(routine.penalty(context).detach()) == pytest.approx(count)


def test_the_task_type_of_the_walk_conforms():
    check_task(walk("The task type").Brightness())


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
