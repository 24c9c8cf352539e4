"""Boxes in Hugging Face datasets: both forms of a column of objects, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.reader_samples import problems, read

from mtpeft.api import DataError

NAMES = ["mask", "glove"]
ROWS = [
    [{"bbox": [1, 2, 4, 3], "category": 1, "iscrowd": 0}, {"bbox": [0, 0, 2, 2], "category": 0, "iscrowd": 1}],
    [],
    [{"bbox": [2, 1, 10, 7], "category": 0, "iscrowd": 0}],
    [{"bbox": [3, 3, 1, 1], "category": 1, "iscrowd": 0}],
]


@pytest.fixture
def library():
    found = pytest.importorskip("datasets")
    found.disable_progress_bars()
    return found


def fields(library, category=None) -> dict:
    boxes = library.List(library.Value("float64"))
    category = category or library.ClassLabel(names=NAMES)
    return {"bbox": boxes, "category": category, "iscrowd": library.Value("bool")}


def saved(library, path: Path, rows: list, *, lists: bool = True, category=None, column: str = "objects") -> str:
    """One split; each row's objects as a list of tables, or as a table of lists."""
    inner = fields(library, category)
    if lists:
        feature = library.List(inner)
    else:
        feature = {name: library.List(field) for name, field in inner.items()}
        rows = [{name: [found.get(name) for found in row] for name in inner} for row in rows]
    images = [Image.new("RGB", (12, 8), (number, 0, 0)) for number in range(len(rows))]
    kinds = library.Features({"image": library.Image(), column: feature})
    library.Dataset.from_dict({"image": images, column: rows}, features=kinds).save_to_disk(path)
    return f"hf:{path}"


def every(data: str) -> dict[str, list]:
    """Boxes with class and difficulty of all splits, by the row's name."""
    found = {}
    for split in ("train", "val", "test"):
        samples = read(data, split, gives="boxes")
        for index in range(len(samples)):
            target = samples[index].target
            columns = (target["boxes"].tolist(), target["labels"].tolist(), target["difficult"].tolist())
            found[samples[index].name] = [(box, samples.classes[c], d) for box, c, d in zip(*columns, strict=True)]
    return found


@pytest.mark.parametrize("lists", [True, False])
def test_lists_of_tables_and_tables_of_lists(library, tmp_path, lists):
    found = every(saved(library, tmp_path / "ppe", ROWS * 5, lists=lists))
    assert len(found) == 20 and found["train/1"] == found["train/17"] == []
    assert found["train/0"] == [([1, 2, 5, 5], "glove", False), ([0, 0, 2, 2], "mask", True)]
    assert found["train/6"] == [([2, 1, 12, 8], "mask", False)]


def test_images_classes_and_manifest(library, tmp_path):
    data = saved(library, tmp_path / "ppe", ROWS * 5)
    train = read(data, gives="boxes")
    number = int(train[0].name.partition("/")[2])
    assert train[0].image.getpixel((0, 0)) == (number, 0, 0) and train.classes == ("mask", "glove")
    assert sum(train.manifest()["histogram"].values()) == sum(len(train[i].target["labels"]) for i in range(len(train)))
    few = read(f"{data}?classes=glove", gives="boxes")
    assert few.classes == ("glove",) and few.manifest()["histogram"] == {
        "glove": train.manifest()["histogram"]["glove"]
    }
    assert few.manifest()["sha256"] != train.manifest()["sha256"] == read(data, gives="boxes").manifest()["sha256"]


def test_corners_names_and_other_columns(library, tmp_path):
    rows = [[{"bbox": [1, 2, 5, 6], "category": name, "iscrowd": False}] for name in ("bee", "ape")] * 5
    data = saved(library, tmp_path / "a", rows, category=library.Value("string"), column="faces")
    train = read(f"{data}?objects=faces&boxes=xyxy", gives="boxes")
    assert train.classes == ("ape", "bee") and np.array_equal(train[0].target["boxes"], [[1, 2, 5, 6]])


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"bbox": [1, 2, 3], "category": 0}, r"train/0, object 1: \[1.0, 2.0, 3.0\] is no box"),
        ({"bbox": None, "category": 0}, "object 1: None is no box"),
        ({"bbox": [1, 2, 3, 4], "category": None}, "object 1: None is no class"),
        ({"bbox": [1, 2, float("nan"), 4], "category": 0}, "nan"),
        ({"bbox": [1, 2, 30, 4], "category": 0}, r'ppe/train/0", object 1 \(mask\): box .* outside its image'),
        ({"bbox": [1, 2, 0, 4], "category": 0}, "no area"),
    ],
)
def test_objects_that_are_refused(library, tmp_path, found, message):
    data = saved(library, tmp_path / "ppe", [[{"iscrowd": 0, **found}], *ROWS * 5])
    with pytest.raises(DataError, match=message):
        every(data)
    reported = [
        error.message for split in ("train", "val", "test") for error in problems(data, split, gives="boxes")[1]
    ]
    assert len(set(reported)) == 1


def test_boxes_that_make_no_sense_may_be_clipped_or_skipped(library, tmp_path):
    row = [{"bbox": box, "category": 0, "iscrowd": 0} for box in ([1, 2, 30, 4], [1, 2, 0, 4])]
    found = every(saved(library, tmp_path / "ppe", [row, *ROWS * 5]) + "?outside=clip&degenerate=skip")
    assert found["train/0"] == [([1, 2, 12, 6], "mask", False)]


def test_columns_without_objects(library, tmp_path):
    data = saved(library, tmp_path / "a", ROWS)
    with pytest.raises(DataError, match='the column "things" does not exist') as caught:
        read(f"{data}?objects=things", gives="boxes")
    assert "?objects=COLUMN" in caught.value.hint
    with pytest.raises(DataError, match='the column "image" holds no boxes with classes'):
        read(f"{data}?objects=image", gives="boxes")
    with pytest.raises(DataError, match='the column "label" does not exist'):
        read(data)


def test_a_row_without_an_image(library, tmp_path):
    kinds = library.Features({"image": library.Image(), "objects": library.List(fields(library))})
    columns = {"image": [None] * 4, "objects": ROWS}
    library.Dataset.from_dict(columns, features=kinds).save_to_disk(tmp_path / "a")
    with pytest.raises(DataError, match=r'train/\d" has no image|train/\d has no image'):
        every(f"hf:{tmp_path / 'a'}")
