"""What holds for every reader of labelled images: the order of classes, positions, splits, contradictions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.reader_samples import labels, names, picture, pictures, problems, read, rows

from mtpeft.api import DataError, MtpeftError
from mtpeft.data.reader import open_reader
from mtpeft_tasks.readers.labels import SPLITS, in_order, labels_of


def write(root: Path, layout: str, **splits: list[tuple[str, str]]) -> str:
    """The same splits in a layout: ``csv``, ``txt`` or ``json``; gives what names them."""
    for split, lines in splits.items():
        if layout == "csv":
            text = "path,label\n" + "".join(f"{path},{label}\n" for path, label in lines)
        elif layout == "txt":
            text = "".join(f"{path}\t{label}\n" for path, label in lines)
        else:
            text = "{" + ", ".join(f"{json.dumps(path)}: {json.dumps(label)}" for path, label in lines) + "}"
        (root / f"{split}.{layout}").write_text(text, encoding="utf-8")
    return f"{'csv' if layout == 'csv' else 'list'}:{root}"


layouts = pytest.mark.parametrize("layout", ["csv", "txt", "json"])


@layouts
def test_splits_and_sorted_classes(tmp_path, layout):
    pictures(tmp_path, "a.png", "b.png", "c.png")
    data = write(tmp_path, layout, train=[("b.png", "dog"), ("a.png", "cat")], val=[("c.png", "dog")])
    train, val = read(data), read(data, "val")
    assert train.classes == val.classes == ("cat", "dog")
    assert names(train) == ["b.png", "a.png"] and labels(train) == ["dog", "cat"] and labels(val) == ["dog"]
    assert train[0].image.getpixel((0, 0)) == (1, 0, 0) and train[0].target == {"label": 1, "classes": ("cat", "dog")}
    assert train.manifest()["histogram"] == {"cat": 1, "dog": 1}


@layouts
def test_numbers_are_ordered_by_value(tmp_path, layout):
    pictures(tmp_path, "a.png", "b.png", "c.png")
    data = write(tmp_path, layout, train=[("a.png", "10"), ("b.png", "9"), ("c.png", "2")])
    assert read(data).classes == ("2", "9", "10") and labels(read(data)) == ["10", "9", "2"]


@layouts
def test_a_label_is_a_name_or_a_position_of_classes_txt(tmp_path, layout):
    pictures(tmp_path, "a.png", "b.png", "c.png")
    (tmp_path / "classes.txt").write_text("zebra\nape\n7\n")
    data = write(tmp_path, layout, train=[("a.png", "1"), ("b.png", "zebra"), ("c.png", "7")])
    assert read(data).classes == ("zebra", "ape", "7") and labels(read(data)) == ["ape", "zebra", "7"]
    for label in ("3", "zebar", "-1"):
        data = write(tmp_path, layout, train=[("a.png", "1"), ("b.png", label)])
        with pytest.raises(
            DataError, match=rf'train\.{layout}", .* has class "{label}", which is not in ".*classes.txt"'
        ):
            read(data)


@pytest.mark.parametrize(("text", "message"), [("\n", "is empty"), ("a\nb\na\n", 'entry 3: "a" is entry 1 too')])
def test_a_classes_file_that_cannot_be(tmp_path, text, message):
    pictures(tmp_path, "a.png")
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read(write(tmp_path, "txt", train=[("a.png", "a")]))


@layouts
def test_missing_splits_are_held_out_by_class(tmp_path, layout):
    given = [(f"{label}/{number}.png", label) for label in ("cat", "dog") for number in range(10)]
    data = write(pictures(tmp_path, *dict(given)), layout, train=given)
    parts = [read(data, split) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [14, 2, 4]
    assert rows(data) == sorted(given)
    assert sorted(labels(parts[2])) == ["cat", "cat", "dog", "dog"]


@layouts
def test_an_image_with_two_labels(tmp_path, layout):
    pictures(tmp_path, "a.png", "b.png")
    data = write(tmp_path, layout, train=[("a.png", "cat"), ("b.png", "dog"), ("./a.png", "dog")])
    with pytest.raises(DataError, match=r'"./a.png" has "dog", but "cat" in .*(line 2|entry 1)') as caught:
        read(data)
    assert ("line 4" if layout == "csv" else "entry 3") in caught.value.message
    found, said = problems(data)
    assert names(found) == ["a.png", "b.png"] and len(said) == 1


@layouts
def test_an_image_in_two_splits(tmp_path, layout):
    pictures(tmp_path, "a.png", "b.png")
    data = write(tmp_path, layout, train=[("a.png", "cat"), ("b.png", "cat")], test=[("b.png", "cat")])
    with pytest.raises(DataError, match=rf'test.{layout}", .*"b.png" is in the split test, and in train by .*train'):
        read(data, "test")


@layouts
def test_a_class_that_training_never_shows_is_noticed(tmp_path, layout):
    pictures(tmp_path, "a.png", "b.png", "c.png", "d.png")
    test = [("b.png", "cat"), ("c.png", "emu"), ("d.png", "emu")]
    data = write(tmp_path, layout, train=[("a.png", "cat")], test=test)
    reader, place = open_reader(data)
    assert labels(reader.read(place, "test", gives="label", seed=0)) == ["cat", "emu", "emu"]
    (noticed,) = reader.noticed
    assert noticed.message.startswith(f'"{tmp_path / "test"}.{layout}", {"line 3" if layout == "csv" else "entry 2"}: ')
    assert noticed.message.endswith('class "emu" is never shown in training') and "?classes=" in noticed.hint
    reader, place = open_reader(f"{data}?classes=cat")
    assert labels(reader.read(place, "test", gives="label", seed=0)) == ["cat"] and not reader.noticed


@layouts
def test_an_image_named_twice(tmp_path, layout):
    pictures(tmp_path, "a.png", "b.png", "x/c.png")
    data = write(tmp_path, layout, train=[("a.png", "cat"), ("b.png", "dog"), ("x/../a.png", "cat")])
    with pytest.raises(DataError, match=r'"x/../a.png" is named twice, by .*train.*(line 2|entry 1) too'):
        read(data)


@layouts
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("../a.png", "is outside of the data"),
        ("/a.png", "is outside of the data"),
        ("sub/../../a.png", "is outside of the data"),
        ("loop.png", "cannot be opened: Too many levels of symbolic links"),
        ("missing.png", 'there is no file "missing.png"'),
    ],
)
def test_a_path_that_is_refused(tmp_path, layout, path, message):
    root = pictures(tmp_path / "data", "b.png", "sub/c.png")
    picture(tmp_path / "a.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    with pytest.raises(DataError, match=rf'train.{layout}", (line 3|entry 2): .*{message}'):
        read(write(root, layout, train=[("b.png", "cat"), (path, "cat")]))


@layouts
def test_unicode_spaces_byte_order_marks_and_windows_lines(tmp_path, layout):
    given = [("großer Kater/bild 1.png", "großer Kater"), ("犬/写真.png", "犬"), ("b.png", "犬")]
    data = write(pictures(tmp_path, *dict(given)), layout, train=given)
    file = tmp_path / f"train.{layout}"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert rows(data) == sorted(given)


@layouts
def test_a_label_that_is_missing(tmp_path, layout):
    pictures(tmp_path, "a.png", "b.png")
    for label, message in (("NaN", 'label "NaN" is no class'), ("cat;dog", r'"b.png" has 2 labels \(cat, dog\)')):
        data = write(tmp_path, layout, train=[("a.png", "cat"), ("b.png", label)])
        with pytest.raises(DataError, match=message) as caught:
            read(data)
        assert f"train.{layout}" in caught.value.message
        found, said = problems(data)
        assert labels(found) == ["cat"] and len(said) == 1
    assert "multi-label" in caught.value.hint


@layouts
def test_several_labels(tmp_path, layout):
    train = [("a.png", "dog;cat"), ("b.png", "emu| dog"), ("c.png", "")]
    if layout == "txt":
        train[2] = ("c.png", "|")
    data = write(pictures(tmp_path, "a.png", "b.png", "c.png", "d.png"), layout, train=train, test=[("d.png", "cat")])
    expected = [("a.png", ["dog", "cat"]), ("b.png", ["emu", "dog"]), ("c.png", []), ("d.png", ["cat"])]
    assert rows(data, gives="labels") == expected
    assert read(data, gives="labels").classes == ("cat", "dog", "emu")
    kept = read(f"{data}?classes=cat", "test", gives="labels")
    assert kept.classes == ("cat",) and labels(kept) == [["cat"]]
    with pytest.raises(DataError, match='has no labels in the split "test"'):
        read(f"{data}?classes=emu", "test", gives="labels")


@layouts
def test_an_image_that_is_none(tmp_path, layout):
    pictures(tmp_path, "a.png", "b.png")
    (tmp_path / "b.png").write_text("hello")
    data = write(tmp_path, layout, train=[("a.png", "cat"), ("b.png", "cat")])
    with pytest.raises(DataError, match=r'b.png" cannot be read: not an image'):
        rows(data)


MODES = {
    "grey.png": Image.fromarray(np.full((8, 12), 200, np.uint8)),
    "deep.png": Image.fromarray(np.full((8, 12), 51400, np.uint16)),
    "clear.png": Image.new("RGBA", (12, 8), (200, 200, 200, 255)),
    "print.jpg": Image.new("CMYK", (12, 8), (0, 0, 0, 55)),
    "palette.gif": Image.new("L", (12, 8), 200).convert("P"),
}


def test_images_of_every_kind(tmp_path):
    for name, image in MODES.items():
        image.save(tmp_path / name)
    frames = [Image.new("RGB", (12, 8), (value, value, value)) for value in (200, 0)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    turned = Image.new("RGB", (8, 12), (200, 200, 200))
    turned.getexif()[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=turned.getexif())
    data = write(tmp_path, "txt", train=[(name, "cat") for name in (*MODES, "moving.gif", "turned.jpg")])
    samples = [part[index] for part in (read(data, split) for split in SPLITS) for index in range(len(part))]
    assert len(samples) == 7
    for sample in samples:
        assert sample.image.mode == "RGB" and sample.image.size == (12, 8), sample.name
        assert all(abs(value - 200) <= 2 for value in sample.image.getpixel((5, 5))), sample.name


def test_labels_in_a_text():
    assert labels_of(" cat ; dog|cat;", "list") == ("cat", "dog") and labels_of("", "list") == ()
    assert labels_of("cat;dog", "list", "") == ("cat;dog",) and labels_of("a/b;c", "list", "/") == ("a", "b;c")


@given(st.lists(st.integers(0, 10**12)), st.lists(st.text("ab1", max_size=3)))
def test_the_order_is_total_and_numbers_are_first(numbers, texts):
    ordered = in_order([*map(str, numbers), *texts])
    assert ordered == in_order(reversed(ordered)) and len(set(ordered)) == len(ordered)
    values = [int(name) for name in ordered if name.isdecimal() and len(name) < 10]
    assert values == sorted(values)


FILES = ["csv/train.csv", "csv/train.tsv", "list/train.txt", "list/train.json", "folder/train.txt"]


@pytest.mark.parametrize("file", FILES)
@given(content=st.one_of(st.binary(max_size=60), st.text('a.png,path\tlabel{}[]:";|\n\r01\0/', max_size=60)))
def test_no_content_crashes_a_reader(tmp_path_factory, file, content):
    place = tmp_path_factory.mktemp("fuzz") / file
    pictures(place.parent, "a.png")
    place.write_bytes(content if isinstance(content, bytes) else content.encode())
    for gives in ("label", "labels"):
        try:
            assert all(name == "a.png" for name in names(read(f"{file.split('/')[0]}:{place.parent}", gives=gives)))
        except MtpeftError as error:
            assert error.message and error.hint


def test_a_folder_list_that_leaves_the_data(tmp_path):
    root = pictures(tmp_path / "data", "cat/a.png", "loose.png")
    picture(tmp_path / "b.png")
    for line, message in (("../b.png", "outside"), ("../b.png cat", "outside"), ("loose.png", "has no label")):
        (root / "train.txt").write_text(f"cat/a.png\n{line}\n")
        with pytest.raises(DataError, match=rf'train.txt", entry 2: .*{message}'):
            read(f"folder:{root}")
    (root / "train.txt").write_text("cat/a.png\nloose.png dog\n")
    assert read(f"folder:{root}").classes == ("cat", "dog")
