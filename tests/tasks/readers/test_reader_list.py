"""List files: VTAB-1k's and FGVC's layouts as published, the protocols, and what no list is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from support.reader_samples import labels, names, pictures, problems, read, rows, vtab

from mtpeft.api import DataError, UsageError
from mtpeft.data.reader import open_reader


def test_vtab_protocols(tmp_path):
    data = vtab(tmp_path)
    tune = [read(data, split) for split in ("train", "val", "test")]
    final = [read(f"{data}?protocol=1000", split) for split in ("train", "val", "test")]
    assert [len(part) for part in tune] == [8, 2, 6] and [len(part) for part in final] == [10, 2, 6]
    assert names(final[0]) == names(tune[0]) + names(tune[1]) and names(final[1]) == names(tune[1])
    assert all(part.classes == ("0", "11") for part in tune + final) and labels(tune[1]) == ["0", "11"]
    assert tune[0][3].name == "images/train800/000003.jpg"
    assert tune[0].manifest()["sha256"] != final[0].manifest()["sha256"]


def test_a_class_that_vtab_validates_but_does_not_tune_on(tmp_path):
    data = vtab(tmp_path)
    (tmp_path / "val200.txt").write_text("images/val200/000000.jpg 3\n")
    pictures(tmp_path, "images/test/000009.jpg")
    with (tmp_path / "test.txt").open("a") as file:
        file.write("\nimages/test/000009.jpg 3")
    assert read(data).classes == ("0", "3", "11") and len(read(data, "test")) == 7


def test_vtab_files_that_are_missing_and_protocols_that_are_none(tmp_path):
    data = vtab(tmp_path)
    (tmp_path / "train800val200.txt").unlink()
    assert len(read(data)) == 8
    with pytest.raises(DataError, match=r'has no "train800val200.txt"') as caught:
        read(f"{data}?protocol=1000")
    assert "protocol=1000" in caught.value.hint
    with pytest.raises(UsageError, match=r"list.protocol = 900 does not fit") as wrong:
        read(f"{data}?protocol=900")
    assert "800, 1000" in wrong.value.hint


@pytest.mark.parametrize("folder", ["", "images/", "Images/"])
def test_fgvc(tmp_path, folder):
    """CUB and NABirds keep images in ``images``, Dogs in ``Images``, Cars and Flowers in the root."""
    lists = {"train": {"200.Wren/w 1.jpg": 199, "001.Auk/a.jpg": 0}, "val": {"200.Wren/w2.jpg": 199}}
    lists["test"] = {"001.Auk/b.jpg": 0}
    for split, items in lists.items():
        pictures(tmp_path, *(folder + path for path in items))
        (tmp_path / f"{split}.json").write_text(json.dumps(items))
    data = f"list:{tmp_path}"
    assert read(data).classes == ("0", "199") and names(read(data)) == ["200.Wren/w 1.jpg", "001.Auk/a.jpg"]
    assert rows(data) == sorted((path, str(label)) for items in lists.values() for path, label in items.items())


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[1, 2]", r'train.json" is no json object', "relative/path.jpg"),
        ("{", "is not valid json", "repair"),
        ("[" * 100_000, "is not valid json", "repair"),
        ("{}", r'train.json" is empty', "each image"),
        ('{"a.png": NaN}', r'entry 1: "a.png" has the class NaN, which is neither', "number or name"),
        ('{"a.png": 1.5}', "has the class 1.5", "number or name"),
        ('{"a.png": true}', "has the class true", "number or name"),
        ('{"a.png": null}', "has the class null", "number or name"),
        ('{"a.png": {"label": 1}}', "has the class", "number or name"),
        ('{"a.png": 1, "b.png": 1, "a.png": 2}', 'entry 3: "a.png" has "2", but "1" in .*entry 1', "keep one"),
        ('{"a.png": [1, 2]}', r'entry 1: "a.png" has 2 labels \(1, 2\)', "multi-label"),
        ('{"": 1}', "entry 1 names no file", "relative"),
        ('{"a\\u0000.png": 1}', "entry 1: .*embedded null byte", "correct"),
    ],
)
def test_a_json_list_that_is_refused(tmp_path, text, message, hint):
    (pictures(tmp_path, "a.png", "b.png") / "train.json").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read(f"list:{tmp_path}")
    assert "train.json" in caught.value.message and hint in caught.value.hint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r'train.txt" is empty'),
        (b"\xef\xbb\xbf\r\n \r\n", r'train.txt" is empty'),
        (b"a.png", 'entry 1: "a.png" is no path with a label'),
        (b"a.png large cat", 'entry 1: there is no file "a.png large"'),
        (b"a.png \xff\xfe", "is not UTF-8"),
        (b"a.png |", 'entry 1: "a.png" has no label'),
    ],
)
def test_a_list_that_is_refused(tmp_path, content, message):
    (pictures(tmp_path, "a.png") / "train.txt").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read(f"list:{tmp_path}")
    assert "train.txt" in caught.value.message and caught.value.hint


def test_a_single_list_and_several_labels_in_json(tmp_path):
    (pictures(tmp_path, "a.png", "b.png", "c.png") / "all.txt").write_text("a.png\tlarge cat\nb.png\tlarge cat\n")
    assert labels(read(f"list:{tmp_path / 'all.txt'}")) == ["large cat"]
    (tmp_path / "train.json").write_text('{"a.png": [3, 1], "b.png": "x;y"}')
    (tmp_path / "test.json").write_text('{"c.png": 1}')
    (tmp_path / "val.json").write_text('{"c.png": 1}')
    found, said = problems(f"list:{tmp_path}", gives="labels")
    assert labels(found) == [["3", "1"], ["x", "y"]] and len(said) == 1
    with pytest.raises(DataError, match="does not exist"):
        read(f"list:{tmp_path / 'none'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no lists") as caught:
        read(f"list:{tmp_path / 'empty'}")
    assert "train800.txt" in caught.value.hint


def test_what_is_recognised(tmp_path):
    reader, _ = open_reader(f"list:{tmp_path}")
    pictures(tmp_path, "images/a.png", "b.png")
    contents = {
        "train.txt": [("a.png cat\n", True), ("b.png\tcat", True), ("b.png", False), ("c.png cat", False)],
        "train.json": [('{"x/a.JPG": 1}', True), ('{"images": [], "a.png": 1}', False), ("\udcff", False)],
        "train800.txt": [("", True)],
    }
    for name, cases in contents.items():
        for text, expected in cases:
            (tmp_path / name).write_text(text, errors="surrogateescape")
            assert reader.recognises(tmp_path) is expected, (name, text)
        (tmp_path / name).unlink()
    assert not reader.recognises(tmp_path / "none")


def named_lists(root: Path) -> str:
    """Lists of other names, of images in a folder of theirs."""
    pictures(root / "pictures", *(f"{domain}/{number}.jpg" for domain in ("real", "sketch") for number in range(12)))
    for domain in ("real", "sketch"):
        lines = [f"{domain}/{number}.jpg {number % 2}\n" for number in range(12)]
        (root / f"{domain}_train.txt").write_text("".join(lines[:10]))
        (root / f"{domain}_test.txt").write_text("".join(lines[10:]))
    return f"list:{root}?images=pictures"


def test_lists_of_other_names(tmp_path):
    data = f"{named_lists(tmp_path)}&train=sketch_train.txt&test=sketch_test.txt"
    assert {split: len(read(data, split)) for split in ("train", "val", "test")} == {"train": 8, "val": 2, "test": 2}
    assert names(read(data, "test")) == ["sketch/10.jpg", "sketch/11.jpg"]
    both = f"{data}&val=real_test.txt"
    assert names(read(both, "val")) == ["real/10.jpg", "real/11.jpg"] and len(read(both)) == 10


def test_lists_of_other_names_that_cannot_be_used(tmp_path):
    data = named_lists(tmp_path)
    with pytest.raises(UsageError, match="not that of the training split") as wrong:
        read(f"{data}&test=real_test.txt")
    assert "?train=FILE" in wrong.value.hint
    with pytest.raises(DataError, match=r'\?test=reel_test.txt: there is no file "reel_test.txt"'):
        read(f"{data}&train=real_train.txt&test=reel_test.txt")
    with pytest.raises(DataError, match="outside of the data"):
        read(f"{data}&train=../{tmp_path.name}/../secret.txt")


def test_the_hash_knows_an_image_that_was_replaced(tmp_path):
    data = vtab(tmp_path)
    before = [read(data, split).manifest()["sha256"] for split in ("train", "val")]
    Image.new("RGB", (90, 60)).save(tmp_path / "images/train800/000003.jpg", quality=30)
    after = [read(data, split).manifest()["sha256"] for split in ("train", "val")]
    assert after[0] != before[0] and after[1] == before[1]
