"""Whatever a file of boxes says, it is read or refused in one sentence that names it."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mtpeft.api import MtpeftError, open_data
from mtpeft_tasks.readers import coco_json

SQUARE = [[1, 1, 5, 1, 5, 4, 1, 4]]
DOCUMENT = {
    "images": [{"id": i, "file_name": f"{i}.png", "width": 7, "height": 5} for i in (1, 2, 3)],
    "categories": [{"id": 4, "name": "cat"}, {"id": 9, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 4, "bbox": [1, 1, 4, 3], "segmentation": SQUARE, "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 9, "segmentation": {"size": [5, 7], "counts": ";230009"}},
    ],
}
PLACES = [
    (),
    *((section,) for section in DOCUMENT),
    *((section, 0) for section in DOCUMENT),
    *((section, 0, key) for section in DOCUMENT for key in DOCUMENT[section][0]),
    *(("annotations", 0, key, 0) for key in ("bbox", "segmentation")),
    ("annotations", 0, "segmentation", 0, 3),
    *(("annotations", 1, "segmentation", key) for key in ("size", "counts")),
]
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["1.png", ".."]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["id", "counts", "size"]), inner),
    max_leaves=6,
)
YAML = "train: images\nval: images\ntest: images\nnames: [cat, dog]\nnc: 2\npath: .\n"
LABELS = "1 0.5 0.5 0.5 0.4\n0 0.25 0.2 0.75 0.2 0.75 0.6 0.25 0.6\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("any data")
    for name in ("1.png", "2.png", "3.png", "images/1.png"):
        (root / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (7, 5)).save(root / name)
    (root / "labels").mkdir()
    return root


def check(data: str) -> int:
    """How many kinds of targets could be read."""
    found = 0
    for gives in ("boxes", "mask"):
        try:
            read = open_data(f"{data}?outside=clip", "train", gives=gives)
        except MtpeftError as error:
            assert error.message and error.hint and "\n" not in error.message
        else:
            assert read[0].target["classes"] == read.classes and read.manifest()["count"] == len(read)
            found += 1
    return found


def check_coco(folder: Path, content: bytes) -> int:
    (folder / "annotations.json").write_bytes(content)
    coco_json._load.cache_clear()
    return check(f"coco:{folder}")


def changed(place: tuple, value) -> object:
    if not place:
        return value
    document = copy.deepcopy(DOCUMENT)
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return document


def test_the_data_can_be_read_before_they_are_spoilt(folder):
    assert check_coco(folder, json.dumps(DOCUMENT).encode()) == 2
    (folder / "data.yaml").write_text(YAML)
    (folder / "labels/1.txt").write_text(LABELS)
    assert check(f"yolo:{folder}") == 1  # a box has no mask


@settings(max_examples=150)
@given(st.sampled_from(PLACES), ANY)
def test_any_value_anywhere_in_a_coco_json(folder, place, value):
    check_coco(folder, json.dumps(changed(place, value)).encode())


@given(st.integers(0, 10_000), st.binary(max_size=3))
def test_a_coco_json_cut_and_spoilt(folder, place, junk):
    content = json.dumps(DOCUMENT).encode()
    place %= len(content)
    check_coco(folder, content[:place] + junk)
    check_coco(folder, content[:place] + junk + content[place + 1 :])


@settings(max_examples=100)
@given(st.integers(0, 10_000), st.binary(max_size=3), st.booleans())
def test_a_yolo_yaml_and_labels_spoilt(folder, place, junk, cut):
    for name, text in {"data.yaml": YAML, "labels/1.txt": LABELS}.items():
        content = text.encode()
        at = place % len(content)
        (folder / "data.yaml").write_text(YAML)
        (folder / "labels/1.txt").write_text(LABELS)
        (folder / name).write_bytes(content[:at] + junk + (b"" if cut else content[at + 1 :]))
        check(f"yolo:{folder}")
