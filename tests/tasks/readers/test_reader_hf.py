"""Hugging Face datasets: saved to disk or read from a folder, their columns, and the extra that is not there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from support.reader_samples import labels, names, pictures, problems, read, rows

from mtpeft.api import DataError
from mtpeft.config import Overrides, load
from mtpeft.data.reader import open_reader
from mtpeft_tasks.readers.hf import HuggingFace


def test_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match='the reader "hf" needs Hugging Face datasets') as caught:
        read(f"hf:{tmp_path}")
    assert caught.value.hint == "pip install 'mtpeft[hf]'"


def test_what_is_recognised(tmp_path):
    reader, _ = open_reader(f"hf:{tmp_path}")
    assert not reader.recognises(tmp_path)
    (tmp_path / "dataset_dict.json").touch()
    assert reader.recognises(tmp_path)


@pytest.fixture
def library():
    found = pytest.importorskip("datasets")
    found.disable_progress_bars()
    return found


def table(library, columns: dict, count: int = 4, **features):
    images = [Image.new("RGB", (12, 8), (number, 0, 0)) for number in range(count)]
    kinds = library.Features({"image": library.Image(), **features})
    return library.Dataset.from_dict({"image": images, **columns}, features=kinds)


def saved(library, path: Path, **splits: list) -> str:
    label = library.ClassLabel(names=["dog", "cat"])
    made = {name: table(library, {"label": given}, len(given), label=label) for name, given in splits.items()}
    library.DatasetDict(made).save_to_disk(path)
    return f"hf:{path}"


def test_saved_to_disk(library, tmp_path):
    data = saved(library, tmp_path / "pets", train=[0, 1, 1, 0], validation=[1], test=[0, 1])
    assert open_reader(data)[0].recognises(tmp_path / "pets")
    assert read(data).classes == ("dog", "cat") and labels(read(data)) == ["dog", "cat", "cat", "dog"]
    assert names(read(data, "val")) == ["val/0"] and labels(read(data, "test")) == ["dog", "cat"]
    assert read(data)[2].image.getpixel((0, 0)) == (2, 0, 0)
    assert labels(read(data, gives="labels")) == [["dog"], ["cat"], ["cat"], ["dog"]]


def test_one_split_is_held_out_of(library, tmp_path):
    label = library.ClassLabel(names=["dog", "cat"])
    table(library, {"label": [0, 1] * 10}, 20, label=label).save_to_disk(tmp_path / "one")
    assert [len(read(f"hf:{tmp_path / 'one'}", split)) for split in ("train", "val", "test")] == [14, 2, 4]


def test_a_folder_of_images(library, tmp_path, monkeypatch):
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    paths = [f"train/{label}/{number}.png" for label in ("ape", "bee") for number in range(9)]
    found = rows(f"hf:{pictures(tmp_path / 'data', *paths)}")
    assert len(found) == 18 and [label for _, label in found].count("ape") == 9


def test_several_labels_and_other_columns(library, tmp_path):
    several = library.List(library.ClassLabel(names=["dog", "cat"]))
    text = {"label": [[1, 0], [], [1], [0]], "breed": ["b;c", "a", "b;c", "a"]}
    table(library, text, label=several, breed=library.Value("string")).save_to_disk(tmp_path / "a")
    reader, place = open_reader(f"hf:{tmp_path / 'a'}")
    assert [entry.labels for entry in reader.find(place).splits["train"]] == [("cat", "dog"), (), ("cat",), ("dog",)]
    assert read(f"hf:{tmp_path / 'a'}?label=breed").classes == ("a", "b;c")
    with pytest.raises(DataError, match=r'train/0: "train/0" has 2 labels \(cat, dog\)'):
        read(f"hf:{tmp_path / 'a'}")


@pytest.mark.parametrize(
    ("option", "message", "hint"),
    [
        ("label=lable", 'split train: the column "lable" does not exist', 'did you mean "label"'),
        ("image=picture", 'the column "picture" does not exist', "There is: image"),
        ("image=label", 'the column "label" holds no images', "?image=COLUMN"),
        ("label=image", 'the column "image" holds no labels', "?label=COLUMN"),
    ],
)
def test_columns_that_are_refused(library, tmp_path, option, message, hint):
    data = saved(library, tmp_path / "pets", train=[0, 1])
    with pytest.raises(DataError, match=message) as caught:
        read(f"{data}?{option}")
    assert hint in caught.value.hint


def test_labels_and_splits_that_are_missing(library, tmp_path):
    data = saved(library, tmp_path / "a", train=[0, 1, 1, 0], test=[-1, 0])
    with pytest.raises(DataError, match='test/0: "test/0" has no label'):
        read(data)
    assert len(problems(data, "test")[0]) == 1
    data = saved(library, tmp_path / "b", test=[0, 1])
    with pytest.raises(DataError, match='has no split "train"') as caught:
        read(data)
    assert caught.value.hint == "it has: test"
    numbers = table(library, {"label": [1.0, float("nan"), 1.0, 1.0]}, label=library.Value("float64"))
    numbers.save_to_disk(tmp_path / "c")
    with pytest.raises(DataError, match='train/1: label "nan" is no class'):
        read(f"hf:{tmp_path / 'c'}")


def test_what_cannot_be_loaded(library, tmp_path):
    with pytest.raises(DataError, match="cannot be loaded by datasets"):
        read(f"hf:{tmp_path}")
    data = Path(saved(library, tmp_path / "a", train=[0, 1]).removeprefix("hf:"))
    (data / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "none"]}))
    with pytest.raises(DataError, match="cannot be loaded by datasets") as caught:
        read(f"hf:{data}")
    assert "?config=NAME" in caught.value.hint


def test_an_image_that_is_missing_or_none(library, tmp_path):
    label = library.ClassLabel(names=["dog", "cat"])
    images = [None, {"bytes": b"hello", "path": None}]
    features = library.Features({"image": library.Image(), "label": label})
    library.Dataset.from_dict({"image": images * 2, "label": [0, 1, 1, 0]}, features=features).save_to_disk(tmp_path)
    source = read(f"hf:{tmp_path}").source
    for index, reason in enumerate(("it is missing", "not an image")):
        with pytest.raises(DataError, match=f'image "train/{index}" cannot be read: {reason}'):
            source.image(f"train/{index}")


def test_a_name_on_the_hub_is_no_path(tmp_path, monkeypatch):
    asked = []
    library = SimpleNamespace(load_dataset=lambda *names: asked.append(names))
    HuggingFace(config="small")._opened(library, "hf://user/beans")
    HuggingFace()._opened(library, str(tmp_path))
    assert asked == [("user/beans", "small"), (str(tmp_path), None)]
    recipe = load(None, Overrides({"--tasks": "a=cls@hf:hf://user/beans", "--method": "lora"}))
    assert recipe.tasks["a"].settings["data"] == "hf:hf://user/beans"
