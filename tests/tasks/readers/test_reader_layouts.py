"""Layouts as people have them: endings, folders below folders, names of splits; and what is left out is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.reader_samples import labels, names, picture, pictures, problems, read

from mtpeft.api import SPLITS, DataError, UsageError, open_data
from mtpeft.data.reader import open_reader
from mtpeft_tasks.names import unseen
from mtpeft_tasks.readers import files, walk
from mtpeft_tasks.readers.splits import FOLDERS, split_of
from mtpeft_tasks.readers.yolo_yaml import _unique

WRITTEN = {
    ".jpg": "JPEG", ".jfif": "JPEG", ".jpe": "JPEG", ".png": "PNG", ".apng": "PNG", ".webp": "WEBP", ".avif": "AVIF",
    ".jp2": "JPEG2000", ".j2k": "JPEG2000", ".tiff": "TIFF", ".gif": "GIF", ".bmp": "BMP", ".tga": "TGA", ".ppm": "PPM",
    ".ico": "ICO", ".pcx": "PCX", ".dds": "DDS",
}  # fmt: skip
"""Endings and the format that Pillow writes for them."""


def folders(root: Path, *images: str) -> str:
    pictures(root, *images, "dog/1.png", "dog/2.png")
    return f"folder:{root}"


def noticed(data: str) -> list[str]:
    reader, place = open_reader(data)
    reader.read(place, "train", gives=reader.gives[0], seed=0)
    return [remark.message for remark in reader.noticed]


def every(data: str) -> list[str]:
    return sorted(name for split in SPLITS for name in names(read(data, split)))


@pytest.mark.parametrize("ending", WRITTEN)
def test_what_pillow_decodes_is_an_image(tmp_path, ending):
    Image.init()
    if WRITTEN[ending] not in walk.formats():
        pytest.skip(f"this Pillow has no {WRITTEN[ending]}")
    data = folders(tmp_path)
    (tmp_path / "cat").mkdir()
    for case in (ending, ending.upper()):
        Image.new("RGB", (16, 16), (200, 0, 0)).save(tmp_path / "cat" / f"x{case}", WRITTEN[ending])
    found = {path for path in every(data) if path.startswith("cat")}
    assert found == {f"cat/x{ending}", f"cat/x{ending.upper()}"} and noticed(data) == []


def test_formats_that_run_another_program_are_none():
    assert {"EPS", "WMF", "HDF5", "MPEG"} & set(walk.formats()) == set()
    assert not walk.suffixes() & {".eps", ".ps", ".pdf", ".h5", ".mpg", ".txt"}


def test_postscript_in_disguise_is_not_opened(tmp_path):
    data = folders(tmp_path, "cat/1.png")
    (tmp_path / "cat/x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    _, found = problems(data)
    assert all("not an image" in error.message for error in found)
    with pytest.raises(DataError, match="not an image"):
        files.decode(tmp_path / "cat/x.png")


@pytest.mark.parametrize(("name", "package"), [("x.heic", "pillow-heif"), ("x.JXL", "pillow-jxl-plugin")])
def test_what_needs_a_plugin_is_left_out_with_its_name(tmp_path, name, package):
    data = folders(tmp_path, "cat/1.png")
    (tmp_path / "cat" / name).write_bytes(b"\0")
    reader, place = open_reader(data)
    reader.read(place, "train", gives="label", seed=0)
    (remark,) = reader.noticed
    assert name in remark.message and package in remark.hint


def test_a_format_that_a_plugin_registers_is_read(tmp_path, monkeypatch):
    monkeypatch.setitem(Image.EXTENSION, ".heic", "PNG")
    data = folders(tmp_path)
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "cat/x.heic", "PNG")
    assert "cat/x.heic" in every(data)


def test_images_below_the_folder_of_a_class_are_of_it(tmp_path):
    data = folders(tmp_path, "cat/1.png", "cat/indoors/2.png", "cat/indoors/black/3.png", "cat/.hidden/4.png")
    (tmp_path / "cat/indoors/loop").symlink_to(tmp_path / "cat")
    found = dict(zip(names(read(data)), labels(read(data)), strict=True))
    assert every(data) == [
        "cat/1.png", "cat/indoors/2.png", "cat/indoors/black/3.png", "dog/1.png", "dog/2.png"
    ]  # fmt: skip
    assert all(label == path.split("/")[0] for path, label in found.items())


def test_images_in_no_folder_of_a_class_are_said(tmp_path):
    data = folders(tmp_path, "cat/1.png", "loose.png")
    (remark,) = noticed(data)
    assert 'loose.png" is in no folder of a class' in remark
    assert [error.message for error in open_data(data, "train", gives="label").left_out] == [remark]


def test_folders_that_are_no_split_are_said(tmp_path):
    pictures(tmp_path, *(f"{split}/{name}/1.png" for split in ("train", "test", "extra") for name in ("cat", "dog")))
    (remark,) = noticed(f"folder:{tmp_path}")
    assert 'extra" is no split by its name' in remark


def spellings(split: str) -> list[str]:
    return sorted(FOLDERS[split])


@pytest.mark.parametrize("split", SPLITS)
def test_every_spelling_of_a_split_is_known(split):
    assert {split_of(name) for name in spellings(split)} == {split}
    assert split_of("photos") is None


@pytest.mark.parametrize("spelling", [*spellings("val"), *spellings("test")])
def test_folders_of_a_split_in_any_spelling(tmp_path, spelling):
    split = split_of(spelling)
    images = [f"{place}/{name}/{number}.png" for place in ("Train", spelling) for name in "ab" for number in range(5)]
    pictures(tmp_path, *images)
    data = f"folder:{tmp_path}"
    assert [len(read(data, name)) for name in ("train", split)][1] == 10
    assert {path.split("/")[0] for path in names(read(data, split))} == {spelling}
    assert noticed(data) == []


@pytest.mark.parametrize(
    ("reader", "gives", "build"),
    [
        ("folder", "label", lambda root, name: [picture(root / name / c / f"{n}.png") for c in "ab" for n in "123"]),
        ("list", "label", lambda root, name: listed(root, name, "x{}.png a\n")),
        ("csv", "label", lambda root, name: listed(root, name, "x{}.png,a\n", "csv", "path,label\n")),
        ("masks", "mask", lambda root, name: pairs(root, f"images/{name}", f"masks/{name}")),
        ("masks", "mask", lambda root, name: pairs(root, name, f"{name}annot")),
        ("yolo", "boxes", lambda root, name: yolo(root, name)),
        ("coco", "boxes", lambda root, name: coco(root, name)),
        ("voc", "boxes", lambda root, name: voc(root, name)),
    ],
)
@pytest.mark.parametrize(("train", "val"), [("train", "dev"), ("Training", "VALID"), ("TRAIN", "Validation")])
def test_readers_know_one_vocabulary(tmp_path, reader, gives, build, train, val):
    for name in (train, val, "eval"):
        build(tmp_path, name)
    found = {split: names(read(f"{reader}:{tmp_path}", split, gives=gives)) for split in SPLITS}
    sizes = {split: len(found[split]) for split in SPLITS}
    assert len(set(sizes.values())) == 1 and sizes["train"] >= 3


def listed(root: Path, name: str, line: str, ending: str = "txt", head: str = "") -> None:
    for number in range(3):
        picture(root / f"x{name}{number}.png")
    (root / f"{name}.{ending}").write_text(head + "".join(line.format(f"{name}{number}") for number in range(3)))


def pairs(root: Path, images: str, masks: str) -> None:
    for number in range(3):
        picture(root / images / f"{number}.png")
        place = root / masks / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.eye(8, 12, dtype=np.uint8)).save(place)


def yolo(root: Path, name: str) -> None:
    (root / "classes.txt").write_text("a\n")
    for number in range(3):
        picture(root / "images" / name / f"{number}.png")
        (root / "labels" / name).mkdir(parents=True, exist_ok=True)
        (root / "labels" / name / f"{number}.txt").write_text("0 0.5 0.5 0.5 0.5\n")


def coco(root: Path, name: str) -> None:
    images = [{"id": n, "file_name": picture(root / name / f"{n}.png").name} for n in range(3)]
    objects = [{"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 4, 4]} for n in range(3)]
    tree = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "a"}]}
    (root / name / "_annotations.coco.json").write_text(json.dumps(tree))


def voc(root: Path, name: str) -> None:
    lists, notes = root / "ImageSets/Main", root / "Annotations"
    lists.mkdir(parents=True, exist_ok=True), notes.mkdir(exist_ok=True)
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>"
    for number in range(3):
        picture(root / "JPEGImages" / f"{name}{number}.png")
        text = f"<annotation><object><name>a</name>{box}</object></annotation>"
        (notes / f"{name}{number}.xml").write_text(text)
    (lists / f"{name}.txt").write_text("".join(f"{name}{number}\n" for number in range(3)))


def test_images_below_a_flat_folder_are_said(tmp_path):
    voc(tmp_path, "train")
    assert noticed(f"voc:{tmp_path}") == []
    picture(tmp_path / "JPEGImages/more/1.png")
    (remark,) = noticed(f"voc:{tmp_path}")
    assert 'JPEGImages/more" holds images, and is left out' in remark


def test_two_folders_of_one_split_are_an_error(tmp_path):
    pictures(tmp_path, *(f"{split}/{name}/1.png" for split in ("train", "val", "Validation") for name in "ab"))
    with pytest.raises(DataError, match='are both a split "val"'):
        read(f"folder:{tmp_path}")


def test_masks_below_folders_belong_to_images_below_the_same(tmp_path):
    for place in ("one", "two/three"):
        pairs(tmp_path, f"images/{place}", f"masks/{place}")
    assert sum(len(read(f"masks:{tmp_path}", split, gives="mask")) for split in SPLITS) == 6
    (tmp_path / "masks/two").rename(tmp_path / "masks/four")
    _, found = problems(f"masks:{tmp_path}", gives="mask")
    assert sum("has no mask" in error.message for error in found) == 3


# operations


class Counted(str):
    """A name that counts how often it is compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


@pytest.mark.parametrize(
    "work",
    [
        lambda names: _unique(Path("data.yaml"), names),
        lambda names: files.asked_classes(names, names[::2]),
        lambda names: files.repeated([*names, names[0]]),
        lambda names: unseen(names, names[::2]),
    ],
)
def test_names_are_compared_a_few_times_each(work):
    count = 20_000
    names = [Counted(f"name {number}") for number in range(count)]
    Counted.compared = 0
    work(names)
    assert Counted.compared <= 10 * count


def test_a_class_that_is_not_there_is_named():
    with pytest.raises(UsageError, match='no class "c"'):
        files.asked_classes(("a", "b"), ("c",))
    assert files.repeated("abcab") == ["a", "b"]
