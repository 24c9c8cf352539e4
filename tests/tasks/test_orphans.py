"""Labels without an image and images without a label: noticed, or an error where nobody may have meant it."""

from __future__ import annotations

import os.path
from pathlib import Path

import pytest
from support.samples import GENERATORS
from support.samples_made import COUNT, Made, picture

from mtpeft.data.reader import Reader, open_reader
from mtpeft.inspection import choose, survey


@pytest.fixture
def make(tmp_path):
    def make(reader: str) -> Made:
        return GENERATORS[reader](tmp_path, [f"n{number:02}" for number in range(COUNT)])

    return make


def copied(source: Path, name: str) -> Path:
    target = Path(os.path.normpath(source.parent / name))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())
    return target


def looked_at(made: Made, split: str = "train") -> Reader:
    reader, place = open_reader(made.data)
    reader.found = []
    reader.read(place, split, gives=made.gives[0], seed=0)
    return reader


def noticed(made: Made, split: str = "train") -> list[str]:
    return [remark.message for remark in looked_at(made, split).noticed]


@pytest.mark.parametrize("reader", ["coco", "masks", "voc", "yolo"])
def test_whole_data_has_no_orphans(make, reader):
    made = make(reader)
    assert [noticed(made, split) for split in ("train", "val", "test")] == [[], [], []]


@pytest.mark.parametrize("name", ["orphan.txt", "more/orphan.txt", "../later/orphan.txt"])
def test_yolo_labels_of_no_image(make, name):
    made = make("yolo")
    label = copied(made.root / "labels/train/n00.txt", name)
    for split in ("train", "val", "test"):
        (remark,) = looked_at(made, split).noticed
        assert remark.message == f'labels "{label}" belong to no image of any split'
        assert "left out" in remark.hint
    found = survey(choose(str(made.root)))
    assert list(found.warnings) == [remark.message] and not found.errors


def test_yolo_labels_of_an_image_that_no_split_has(make):
    made = make("yolo")
    picture(made.root / "images/more/a.png", 5)
    copied(made.root / "labels/train/n00.txt", "../more/a.txt")
    assert ["more/a.txt" in message for message in noticed(made)] == [True]


@pytest.mark.parametrize("name", [".orphan.txt", ".x/orphan.txt", "../classes.txt", "orphan.json", "../../train.txt"])
def test_yolo_files_that_are_no_labels(make, name):
    made = make("yolo")
    copied(made.root / "labels/train/n00.txt", name)
    assert noticed(made) == []


def test_yolo_labels_in_folders_of_splits_and_of_lists(make):
    made = make("yolo")
    for split in ("train", "val", "test"):
        for kind in ("images", "labels"):
            (made.root / split).mkdir(exist_ok=True)
            (made.root / kind / split).rename(made.root / split / kind)
        files = sorted((made.root / split / "images").iterdir())
        lines = [f"./{split}/images/../images/{file.name}\n" for file in files]
        (made.root / f"{split}.txt").write_text("".join(lines))
    made.texts[0].write_text("train: train.txt\nval: val.txt\ntest: test.txt\nnames: [cat, dog]\n")
    assert noticed(made) == []
    copied(made.root / "val/labels/n06.txt", "orphan.txt")
    assert ["val/labels/orphan.txt" in message for message in noticed(made)] == [True]


def test_voc_annotations_and_images(make):
    made = make("voc")
    copied(made.root / "Annotations/n00.xml", "late.xml")
    copied(made.images[0], "bare.png")
    assert noticed(made) == [
        f'image "{made.root}/JPEGImages/bare.png" has no annotation',
        f'annotation "{made.root}/Annotations/late.xml" is in no split',
    ]


def test_voc_masks_and_images(make):
    """Lists say what images have a mask; without them, all should."""
    made = make("masks")
    for name, folder in (("JPEGImages", "train"), ("SegmentationClass", "trainannot")):
        (made.root / folder).rename(made.root / name)
    lists = made.root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for split, stems in (("train", "n00 n01"), ("val", "n02"), ("test", "n03")):
        (lists / f"{split}.txt").write_text("\n".join(stems.split()))
    copied(made.root / "JPEGImages/n00.png", "bare.png")
    voc = Made(f"voc:{made.root}", made.root, ("mask",), ())
    late = [f'mask "{made.root}/SegmentationClass/n0{number}.png" is in no split' for number in (4, 5)]
    assert noticed(voc) == late
    for file in lists.iterdir():
        file.unlink()
    assert noticed(voc) == [f'image "{made.root}/JPEGImages/bare.png" has no mask']


def test_coco_images_of_no_json_and_entries_of_no_image(make):
    made = make("coco")
    copied(made.images[0], "orphan.png")
    (remark,) = looked_at(made).noticed
    assert remark.message == f'image "{made.root}/train/orphan.png" has no entry in test.json or train.json or val.json'
    assert remark.hint == "add one, also for an image without objects: it is left out"
    assert noticed(made, "val") == []
    made.images[1].unlink()
    assert ['images[1].file_name: there is no file "n01.png"' in one.message for one in looked_at(made).found] == [True]


def test_coco_images_of_all_splits_in_one_folder(make):
    made = make("coco")
    (made.root / "images").mkdir()
    for file in made.images:
        file.rename(made.root / "images" / file.name)
    copied(made.root / "images/n00.png", "orphan.png")
    assert [["orphan" in message for message in noticed(made, split)] for split in ("train", "val")] == [[True]] * 2


def test_masks_and_images(make):
    made = make("masks")
    copied(made.images[0], "bare.png")
    copied(made.masks[0], "late.png")
    assert [error.message for error in looked_at(made).found] == [
        f'image "{made.root}/train/bare.png" has no mask', f'mask "{made.root}/trainannot/late.png" has no image',
    ]  # fmt: skip
