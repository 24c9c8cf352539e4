"""Labels from which nothing can be learned are refused before anything is trained, as ``mtpeft data`` refuses them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.reader_samples import picture

from mtpeft.cli import main
from mtpeft.config import Overrides, load
from mtpeft.data.split_classes import split_classes
from mtpeft.errors import DataError
from mtpeft.inspection import choose, survey
from mtpeft.training.run import Run
from mtpeft.training.setup import setup

COUNT = 20


def masks(root: Path, *values: int) -> str:
    for number in range(COUNT):
        picture(root / "images" / f"{number}.png", number)
        mask = np.full((8, 12), values[0], np.uint8)
        mask[2:5, 3:9] = values[-1]
        (root / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(root / "masks" / f"{number}.png")
    return f"masks:{root}"


def folder(root: Path, *classes: str) -> str:
    for name in classes:
        for number in range(COUNT):
            picture(root / name / f"{number}.png", number)
    return f"folder:{root}"


def yolo(root: Path, *classes: str) -> str:
    (root / "classes.txt").parent.mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("\n".join(classes))
    (root / "labels").mkdir()
    for number in range(COUNT):
        picture(root / "images" / f"{number}.png", number)
        (root / "labels" / f"{number}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    return f"yolo:{root}"


def named(root: Path) -> str:
    data = folder(root, "cat", "dog")
    (root / "classes.txt").write_text("cat\ndog\nemu\n")
    return data


DEGENERATE = {
    "masks of 0 and 255": ("seg", lambda root: masks(root, 0, 255), 'shows one class only, "0"'),
    "masks of 0 and 128": ("seg", lambda root: masks(root, 0, 128), 'names "1", "2", "3", "4", "5" and 122 more'),
    "one folder": ("cls", lambda root: folder(root, "cat"), 'shows one class only, "cat"'),
    "a class without images": ("cls", named, 'names "emu", which no sample'),
    "names that no label uses": ("det", lambda root: yolo(root, "a", "b", "c"), 'names "b", "c", which no sample'),
}


def run(type_: str, data: str, *settings: str) -> Run:
    flags = {"--tasks": f"x={type_}@{data}", "--method": "linear-probe"}
    return setup(split_classes(load(None, Overrides(flags, settings))))


@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_labels_are_refused_or_noted(tmp_path: Path, kind: str) -> None:
    type_, build, said = DEGENERATE[kind]
    data = build(tmp_path)
    with pytest.raises(DataError) as caught:
        run(type_, data)
    assert said in caught.value.message and 'degenerate = "allow"' in caught.value.hint
    assert any(said in message for message in survey(choose(data, type_)).errors)
    (caveat, *_) = run(type_, data, "tasks.x.degenerate=allow").caveats
    assert caveat.startswith('task "x"')


@pytest.mark.parametrize(
    ("type_", "build"),
    [
        ("seg", lambda root: masks(root, 0, 1)),
        ("cls", lambda root: folder(root, "cat", "dog")),
        ("det", lambda root: yolo(root, "a")),
    ],
)
def test_sound_labels_have_no_caveat(tmp_path: Path, type_: str, build) -> None:
    data = build(tmp_path)
    found = run(type_, data)
    assert found.caveats == found.remarks == []
    assert not any("class" in message for message in survey(choose(data, type_)).errors)


def test_drawn_samples_are_judged_by_the_whole(tmp_path: Path) -> None:
    for settings in (["tasks.x.samples=4"], ["tasks.x.part=[1,3]"], ['train_on=["train","val"]']):
        with pytest.raises(DataError, match="one class only"):
            run("cls", folder(tmp_path, "cat"), *settings)


def test_a_stage_of_one_class_is_noted(tmp_path: Path) -> None:
    data = folder(tmp_path, "cat", "dog", "emu")
    found = run("cls", data, "tasks.x.split=[2,1]", "tasks.x.class_order=natural")
    assert len(found.caveats) == 1 and 'task "x-2" trains one class, "emu"' in found.caveats[0]
    assert "means nothing" in found.caveats[0]


def test_the_summary_and_the_manifest_say_it(tmp_path: Path, capsys) -> None:
    data, out = folder(tmp_path / "data", "cat", "dog", "emu"), tmp_path / "run"
    (tmp_path / "data/cat/notes.txt").write_text("x")
    line = ["train", "--tasks", f"x=cls@{data}", "--method", "linear-probe", "--steps", "1", "--out", str(out)]
    line += ["--schedule", "sequential", "--set", "tasks.x.split=[2,1]", "--set", "tasks.x.batch_size=2"]
    assert main(line) == 0
    told = capsys.readouterr()
    assert "trains one class" in told.out and 'notes.txt" is no image' in told.err
    splits = json.loads((out / "manifest.json").read_text())["data"]["x-1"]
    assert splits["train"]["left_out"]["count"] == 1 and "notes.txt" in splits["train"]["left_out"]["examples"][0]
