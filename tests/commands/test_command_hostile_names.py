"""Names that others wrote (classes, files, tasks, plugins) reach no terminal raw, whichever command prints them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from mtpeft import plugins
from mtpeft.api import hookimpl
from mtpeft.cli import main
from mtpeft.evaluation import Costs, Parameters, ResultMatrix, TaskRecord

CONTROLS = "\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff"
RAW = re.compile(f"[{CONTROLS}]|^FORGED", re.MULTILINE)
HOSTILE = [
    "\x1b]0;owned\x07",
    "\x1b[2J\x1b[31mred",
    "line\nFORGED: all is well",
    "back\rFORGED",
    "\u202etxt.exe",
    "\x9b31m",
    "hidden\u200bspace",
    "[bold red]markup[/bold red][/]",
    "|pipe|<b>&",
]
AS_FILES = [*HOSTILE[:7], "\udcff\udcfe", "[bold red]markup"]
"""Names without slashes; the last but one is no UTF-8."""


def outcome(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    out, err = capsys.readouterr()
    assert RAW.search(out) is None and RAW.search(err) is None
    assert "Traceback" not in err
    return code, out, err


@pytest.fixture
def images(tmp_path, monkeypatch) -> Path:
    """Classes and files with hostile names."""
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val", "test"):
        for number, name in enumerate(AS_FILES):
            place = Path("images", split, name)
            place.mkdir(parents=True)
            for file in (name, f"{name} again"):
                Image.new("RGB", (8, 8), (number, len(split), len(file))).save(place / f"{file} {split}.png")
    Path("images", "train", AS_FILES[0], f"{AS_FILES[2]}.png").write_bytes(b"no image")
    return Path("images")


def test_data_shows_hostile_classes_and_files(capsys, images):
    code, out, _ = outcome(capsys, "data", "folder:images", "--page", "page.html")
    assert code == 1 and r"\x1b]0;owned\x07" in out and r"line\nFORGED" in out
    page = Path("page.html").read_text("utf-8")
    assert RAW.search(page) is None and r"\u202etxt.exe" in page
    code, out, _ = outcome(capsys, "data", "folder:images", "--json")
    assert set(json.loads(out)["classes"]) == set(AS_FILES)


def results(names: list[str]) -> dict:
    records = {name: TaskRecord(name, name, True, None, name) for name in names}
    matrix = ResultMatrix(records, [[name] for name in names])
    for stage in range(len(names)):
        for name in names[: stage + 1]:
            matrix.add(stage, name, 50.0 if stage else None, 4)
    matrix.costs = Costs(Parameters(1, dict.fromkeys(names, 2), dict.fromkeys(names, 3), 100))
    return matrix.to_json()


def test_report_shows_hostile_tasks(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("results.json").write_text(json.dumps(results(HOSTILE)))
    Path("more\nFORGED.json").write_text(json.dumps(results(HOSTILE[::-1])))
    code, out, _ = outcome(capsys, "report", "results.json")
    assert code == 0 and r"\x1b]0;owned\x07" in out and "[bold" in out
    assert outcome(capsys, "report", "results.json", "more\nFORGED.json")[0] == 0
    assert json.loads(outcome(capsys, "report", "results.json", "--json")[1])["tasks"].keys() == set(HOSTILE)


class Hostile:
    """Registers hostile ids, of things that are there and of things that are not."""

    @hookimpl
    def register_methods(self) -> dict[str, str]:
        return {name: f"mtpeft_{name}:Method" for name in HOSTILE}

    @hookimpl
    def register_tasks(self) -> dict[str, str]:
        return {name: f"mtpeft_{name}:Task" for name in HOSTILE}

    @hookimpl
    def register_readers(self) -> dict[str, str]:
        return {name: f"mtpeft_{name}:Reader" for name in HOSTILE}


@pytest.mark.parametrize("command", ["methods", "tasks", "plugins", "methods --json", "tasks --json", "plugins --json"])
def test_listings_show_hostile_ids(capsys, command):
    plugins.manager().register(Hostile(), HOSTILE[0])
    _, out, err = outcome(capsys, *command.split())
    assert r"\x1b" in (out + err).replace("u001b", "x1b")  # refused ids are named, listed ones are shown


@pytest.mark.parametrize("command", ["methods", "plugins", "train --tasks cls --method lorra"])
def test_warnings_show_hostile_plugins(capsys, command):
    class Raising:
        @hookimpl
        def register_methods(self) -> dict[str, str]:
            raise ValueError(HOSTILE[1] + HOSTILE[2])

    plugins.manager().register(Raising(), HOSTILE[2])
    outcome(capsys, *command.split())


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize(
    "line",
    [
        "methods NAME", "tasks NAME", "check NAME", "count NAME", "sites NAME", "data NAME", "data voc:NAME",
        "report NAME", "eval NAME", "export NAME", "train NAME", "train --tasks NAME --method lora",
        "train --tasks cls --method NAME", "train --tasks cls=cls@NAME:x --method lora --set NAME=1", "NAME",
    ],
)  # fmt: skip
def test_errors_show_hostile_names(capsys, tmp_path, monkeypatch, line, name):
    monkeypatch.chdir(tmp_path)
    code, _, err = outcome(capsys, *(word.replace("NAME", name) for word in line.split()))
    assert code in (1, 2) and err.startswith("error: ")
