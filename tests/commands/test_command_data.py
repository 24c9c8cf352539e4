from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.samples import GENERATORS
from support.samples_made import COUNT

from mtpeft.cli import main
from mtpeft.config import Overrides, load
from mtpeft.errors import DataError
from mtpeft.reports import render_data
from mtpeft.training.setup import setup


@pytest.fixture
def cells(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("cells").mkdir()
    return GENERATORS["voc"](Path("cells"), [f"n{number:02}" for number in range(COUNT)]).root


def spoil(cells: Path) -> None:
    file = cells / "Annotations" / "n00.xml"
    file.write_text(file.read_text("utf-8").replace("<xmax>10<", "<xmax>1<"), "utf-8")


def test_sound_data_is_reported_with_its_stanza(capsys, cells):
    assert main(["data", "cells"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "recognised   by the reader voc alone" in out and "train       6" in out and "dög" in out
    assert out.endswith('[tasks.cells]\ntype = "det"\ndata = "voc:cells"\n')
    assert max(map(len, out.splitlines())) <= 80


def test_json_is_alone_on_stdout_and_errors_exit_1(capsys, cells):
    spoil(cells)
    assert main(["data", "cells", "--json"]) == 1
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert [error["message"].count("has no area") for error in report["errors"]] == [1]
    assert "degenerate=skip" in report["errors"][0]["hint"] and report["recipe"].startswith("# 2 classes")
    assert err == "error: voc:cells has 1 error\n\nhint: what to do stands in the report\n"


def test_the_page_and_the_recipe_are_written(capsys, cells):
    Path("recipes").mkdir()
    line = ["data", "voc:cells", "--page", "cells.html", "--recipe", "recipes/cells.toml"]
    assert main(line) == 0
    assert Path("cells.html").read_text("utf-8").startswith("<!doctype html>")
    assert 'data = "voc:../cells"' in Path("recipes/cells.toml").read_text()
    config = load(Path("recipes/cells.toml"), Overrides({"--method": "lora"}, []))
    assert config.tasks["cells"].settings["data"] == f"voc:{Path('cells').resolve()}"
    capsys.readouterr()
    assert main(line) == 2
    assert 'error: "recipes/cells.toml" exists already' in capsys.readouterr().err
    assert main(["data", "cells", "--page", "photo.jpg"]) == 2


def test_no_recipe_is_written_for_data_with_errors(capsys, cells):
    spoil(cells)
    assert main(["data", "cells", "--page", "cells.html", "--recipe", "cells.toml"]) == 1
    assert Path("cells.html").exists() and not Path("cells.toml").exists()


def test_many_classes_and_findings_are_cut():
    split = {"images": 9, "empty": 0, "unreadable": 0, "sizes": {}, "histogram": {f"c{n}": n for n in range(99)}}
    findings = [{"message": f"wrong {number}", "hint": ""} for number in range(99)]
    report = {
        "data": "folder:x", "reader": "folder", "recognised": [], "type": "cls", "other_types": ["multi-label"],
        "classes": list(split["histogram"]), "splits": {"train": split}, "duplicates": [], "errors": findings,
        "warnings": findings[:1], "recipe": "[tasks.x]\n",
    }  # fmt: skip
    text = render_data(report)
    assert "and 69 classes more" in text and "and 69 more: --json has all" in text and "1 warning:" in text
    assert "c0      none" in text and "--task multi-label" in text


# the fast part of it, before training


def config(cells: Path, *settings: str):
    flags = {"--tasks": f"cells=det@voc:{cells}", "--method": "lora", "--out": "run", "--device": "cpu"}
    return load(None, Overrides(flags, list(settings)))


def test_training_refuses_classes_that_only_the_test_split_shows(cells):
    setup(config(cells))
    file = cells / "Annotations" / "n11.xml"
    file.write_text(file.read_text("utf-8").replace("<name>big cat<", "<name>emu<"), "utf-8")
    with pytest.raises(DataError, match='task "cells" shows "emu" in the split test, but never in train') as caught:
        setup(config(cells))
    assert 'missing_classes = "allow"' in caught.value.hint
    setup(config(cells, "tasks.cells.missing_classes=allow"))


def test_training_refuses_a_split_without_labels(cells, monkeypatch):
    empty = {"count": 3, "histogram": {"big cat": 0}}
    monkeypatch.setattr("mtpeft_tasks.readers.voc.Boxed.manifest", lambda self: empty)
    with pytest.raises(DataError, match='task "cells" has no labels in the split train'):
        setup(config(cells))


def test_training_refuses_what_a_reader_refuses(cells):
    shutil.rmtree(cells / "JPEGImages")
    with pytest.raises(DataError, match="JPEGImages"):
        setup(config(cells))
