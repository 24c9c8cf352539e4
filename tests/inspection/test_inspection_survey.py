"""Choosing a reader, reading through, the page and the stanza."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image
from support.samples import GENERATORS
from support.samples_made import CLASSES, COUNT, Made

from mtpeft import plugins
from mtpeft.addresses import DataAddress
from mtpeft.data.reader import Reader
from mtpeft.errors import DataError, UsageError
from mtpeft.hookspecs import hookimpl
from mtpeft.inspection import ReaderChoice, Survey, choose, page, stanza, survey
from mtpeft.task import Dataset

TYPES = {"folder": "cls", "voc": "det", "masks": "seg"}


@pytest.fixture
def make(tmp_path):
    def make(reader: str) -> Made:
        place = tmp_path / reader
        place.mkdir()
        return GENERATORS[reader](place, [f"n{number:02}" for number in range(COUNT)])

    return make


def look(made: Made, options: str = "") -> Survey:
    return survey(choose(made.data + options))


@dataclass
class Sees(Reader):
    """Takes every folder for its own, and gives what no task type learns from."""

    gives: ClassVar[tuple[str, ...]] = ("smell",)

    def read(self, path: str, split: str, *, gives: str, seed: int) -> Dataset:
        raise AssertionError

    def recognises(self, path: Path) -> bool:
        return path.is_dir()


class Plugin:
    @hookimpl
    def register_readers(self) -> dict[str, str]:
        return {"sees": f"{__name__}:Sees", "lost": "nonsense_package:Lost"}


# choosing


@pytest.mark.parametrize("reader", TYPES)
def test_a_path_is_recognised(make, reader):
    made = make(reader)
    found = choose(str(made.root))
    assert (found.data, found.types[0], found.recognised) == (made.data, TYPES[reader], (reader,))
    assert choose(made.data) == ReaderChoice(DataAddress.parse(made.data), found.types)


def test_what_several_readers_recognise_must_be_chosen(make, monkeypatch):
    made = make("masks")
    monkeypatch.setattr("mtpeft_tasks.readers.voc.Voc.recognises", lambda self, path: True)
    with pytest.raises(UsageError, match="looks like data for masks and for voc") as caught:
        choose(str(made.root))
    assert f"mtpeft data masks:{made.root} or mtpeft data voc:{made.root}" in caught.value.hint
    monkeypatch.setattr("mtpeft_tasks.readers.voc.Voc.gives", ("boxes",))
    assert choose(str(made.root), "seg").address.reader == "masks"


def test_options_of_a_recognised_path(make):
    made = make("voc")
    assert choose(f"{made.root}?degenerate=skip").data == f"voc:{made.root}?degenerate=skip"
    with pytest.raises(UsageError, match=r"there is no setting voc\.degnerate"):
        choose(f"{made.root}?degnerate=skip")


def test_choices_that_cannot_be(make, tmp_path):
    made = make("voc")
    cases = [
        ("nowhere", "", DataError, 'there is no "nowhere"', "READER:PATH"),
        ("vco:nowhere", "", UsageError, 'there is no reader "vco"', 'did you mean "voc"'),
        (str(tmp_path), "", UsageError, f'no reader recognises "{tmp_path}"', f"mtpeft data READER:{tmp_path}"),
        (str(made.root), "cls", UsageError, r"recognises .* as data for cls", "READER:"),
        (made.data, "cls", UsageError, 'reader "voc" gives no label for cls', "boxes"),
        (made.data, "sge", UsageError, 'no task type "sge"', 'did you mean "seg"'),
    ]
    for data, type, kind, message, hint in cases:
        with pytest.raises(kind, match=message) as caught:
            choose(data, type)
        assert hint in caught.value.hint


def test_readers_of_plugins(make):
    plugins.manager().register(Plugin(), "sees")
    made = make("masks")
    with pytest.raises(UsageError, match="looks like data for masks and for sees"):
        choose(str(made.root))
    with pytest.raises(UsageError, match='no task type learns from what reader "sees" gives: smell'):
        choose(f"sees:{made.root}")


@pytest.mark.parametrize(
    ("data", "name"), [("voc:a/My Cells?x=1", "my-cells"), ("hf:user/beans", "beans"), ("voc:日", "voc")]
)
def test_a_task_is_named_by_its_data(data, name):
    assert ReaderChoice(DataAddress.parse(data), ("det",)).name == name


# reading


@pytest.mark.parametrize("reader", TYPES)
def test_sound_data(make, reader):
    found = look(make(reader))
    assert (found.errors, found.warnings, found.twins) == ({}, {}, [])
    report = found.to_json()
    assert (report["reader"], report["type"], report["classes"]) == (reader, TYPES[reader], list(CLASSES))
    assert {name: split["images"] for name, split in report["splits"].items()} == {"train": 6, "val": 3, "test": 3}
    train = report["splits"]["train"]
    assert (train["empty"], train["unreadable"], train["sizes"]["width"]) == (0, 0, [24, 24, 24])
    assert set(train["histogram"]) == set(CLASSES) and train["sha256"]


def test_every_error_of_a_reader_is_collected(make):
    made = make("voc")
    for file, old, new in ((made.texts[3], "<xmax>10<", "<xmax>1<"), (made.texts[4], "<xmin>1<", "<xmin>-4<")):
        file.write_text(file.read_text("utf-8").replace(old, new), "utf-8")
    messages = list(look(made).errors)
    assert len(messages) == 2 and "no area" in messages[0] and "outside its image" in messages[1]
    assert look(made, "?degenerate=skip&outside=clip").errors == {}


def test_unreadable_and_empty_samples(make):
    made = make("voc")
    made.images[0].write_bytes(made.images[0].read_bytes()[:-150])
    made.texts[4].write_text("<annotation></annotation>")
    found = look(made)
    assert [made.images[0].name in message for message in found.errors] == [True]
    assert found.splits["train"].unreadable == 1 and found.splits["train"].empty == [made.images[1].name]
    assert any("1 of 6 images of train have no label" in message for message in found.warnings)


def test_what_a_reader_notices_is_a_warning(make):
    made = make("voc")
    (made.root / "ImageSets/Main/val.txt").write_text("n06\nn07\n")
    made.images[0].with_name("extra.png").write_bytes(made.images[0].read_bytes())
    found = look(made)
    assert ["extra" in message for message in found.warnings] == [True, False]
    assert "n08.xml" in list(found.warnings)[1] and not found.errors


def test_copies_in_training_and_test_are_an_error(make):
    made = make("masks")
    copies = {made.root / "test/n09.png": "train/n00.png", made.root / "val/n06.png": "train/n01.png"}
    for copy, original in copies.items():
        copy.write_bytes((made.root / original).read_bytes())
    found = look(made)
    assert list(found.errors) == ['test has 1 images with the pixels of train, such as "n09.png" and "n00.png"']
    assert [message.startswith("val has 1 images with the pixels of train") for message in found.warnings] == [True]


def test_near_copies_are_a_warning(make):
    made = make("masks")
    Image.open(made.root / "train/n00.png").point(lambda value: max(0, value - 2)).save(made.root / "test/n09.png")
    found = look(made)
    assert not found.errors and "almost the same" in next(iter(found.warnings))


def test_classes_that_a_split_lacks(make):
    made = make("voc")
    for file in made.root.glob("Annotations/n1*.xml"):
        text = file.read_text("utf-8")
        file.write_text(text.replace(f"<name>{CLASSES[1]}<", f"<name>{CLASSES[0]}<"), "utf-8")
    (made.root / "ImageSets/Main/test.txt").write_text("n10\nn11\n")
    found = look(made)
    assert not found.errors and f'test has no sample of "{CLASSES[1]}"' in found.warnings
    file = made.root / "Annotations/n10.xml"
    file.write_text(file.read_text("utf-8").replace("<name>big cat<", "<name>emu<", 1), "utf-8")
    assert list(look(made).errors) == ['the data shows "emu" in the split test, but never in train']


def test_faults_that_the_reader_lets_through_are_found(make, monkeypatch):
    made = make("voc")
    monkeypatch.setattr("mtpeft_tasks.readers.voc.Voc.checked", lambda self, item, found: found)
    file = made.texts[3]
    file.write_text(file.read_text("utf-8").replace("<xmax>10<", "<xmax>nan<"), "utf-8")
    faults = ("has no area", "is outside its image")
    assert list(look(made).errors) == [f'"n00.png" (train): box 1 {fault}: [1.0, 2.0, nan, 12.0]' for fault in faults]


def test_data_that_cannot_be_read_at_all(make, tmp_path):
    found = survey(choose(f"voc:{tmp_path}/nowhere"))
    assert len(found.errors) == 1 and found.splits == {} and found.classes == ()
    assert "nowhere" in stanza(found) and "Errors" in page(found, "")


# the page and the stanza


@pytest.mark.parametrize("reader", TYPES)
def test_the_page_is_self_contained(make, reader):
    found = look(make(reader))
    text = page(found, stanza(found))
    assert text.startswith("<!doctype html>") and text.count("<figure>") == COUNT
    assert all(
        source.startswith("data:image/jpeg;base64,") for source in re.findall(r'(?:src|href|url)="?([^"]*)', text)
    )
    assert "<script" not in text and "dög" in text and len(text) < 500_000


def test_the_page_draws_labels_and_escapes_names(make):
    made = make("voc")
    found = look(made)
    target = found.sample("train", 0)
    drawn = found.task.draw(target.image, found.task.truth(target.target), found.classes)
    assert not np.array_equal(np.asarray(drawn.resize(target.image.size)), np.asarray(target.image))
    found.warnings["<b>"] = "&"
    assert "&lt;b&gt;" in page(found, "<i>") and "<i>" not in page(found, "<i>")


def test_the_stanza_is_a_recipes(make, tmp_path, monkeypatch):
    made = make("voc")
    monkeypatch.chdir(tmp_path)
    found = survey(choose("voc:voc?degenerate=skip"))
    text = stanza(found)
    assert text.startswith("# 2 classes; images: 6 train, 3 val, 3 test\n[tasks.voc]\n")
    assert tomllib.loads(text) == {"tasks": {"voc": {"type": "det", "data": "voc:voc?degenerate=skip"}}}
    moved = tomllib.loads(stanza(found, tmp_path / "recipes"))
    assert moved["tasks"]["voc"]["data"] == "voc:../voc?degenerate=skip"
    assert tomllib.loads(stanza(look(made), tmp_path / "recipes"))["tasks"]["voc"]["data"] == made.data


def test_a_path_with_a_question_mark_is_found_as_it_is_and_quoted_in_the_recipe(make, tmp_path):
    made = make("voc")
    place = made.root.rename(tmp_path / "what?degenerate=skip")
    found = choose(str(place))
    assert (found.address.path, found.address.options) == (str(place), ())
    assert found.data == f"voc:{str(place).replace('?', '%3F')}"
    assert choose(found.data) == ReaderChoice(found.address, found.types)
    text = stanza(survey(found), tmp_path)
    assert tomllib.loads(text)["tasks"][found.name]["data"] == found.data, "an absolute path stays"
