"""Masks in the layouts of ADE20K, Cityscapes and Pascal VOC."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtpeft.api import DataError, UsageError, open_data
from mtpeft.data.reader import open_reader
from mtpeft_tasks.readers.cityscapes import EVALUATED


def image(path: Path, size=(2, 2)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)
    return path


def values(path: Path, rows, palette: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.fromarray(np.array(rows, np.uint8))
    if palette:
        mask.putpalette([value // 3 for value in range(3 * 256)])
    mask.save(path)
    return path


def mask(data: str, split="train", **options):
    return open_data(data, split, gives="mask", **options)


# ADE20K

OBJECTS = (
    "Idx\tRatio\tTrain\tVal\tStuff\tName\n"
    "1\t0.1576\t11664\t1172\t1\twall\n"
    "2\t0.1072\t6046\t612\t1\tbuilding, edifice\n"
    "3\t0.0878\t8265\t796\t1\tsky\n"
)


def scenes(root: Path, rows=((0, 1), (2, 3)), objects: str = OBJECTS) -> str:
    for split, count in (("training", 20), ("validation", 2)):
        for number in range(count):
            image(root / "images" / split / f"ADE_{split}_{number:08}.jpg")
            values(root / "annotations" / split / f"ADE_{split}_{number:08}.png", rows)
    if objects:
        (root / "objectInfo150.txt").write_text(objects)
    return f"masks:{root}"


def test_ade20k_names_values_from_1_and_ignores_0(tmp_path):
    data = mask(scenes(tmp_path) + "?test=val", "test")
    assert data.classes == ("wall", "building", "sky") and len(data) == 2
    assert data[0].target["mask"].tolist() == [[255, 0], [1, 2]]
    assert data.manifest()["histogram"] == {"wall": 2, "building": 2, "sky": 2}
    assert [len(mask(f"masks:{tmp_path}?test=val", split)) for split in ("train", "val")] == [18, 2]
    assert open_reader("masks:x")[0].recognises(tmp_path)


def test_ade20k_list_with_commas(tmp_path):
    text = "Idx,Ratio,Train,Val,Stuff,Name\n1,0.1576,11664,1172,1,wall\n3,0.0878,8265,796,1,sky;heaven\n"
    scenes(tmp_path, rows=[[0, 1], [3, 255]], objects="")
    (tmp_path / "object150_info.csv").write_text(text)
    data = mask(f"masks:{tmp_path}")
    assert data.classes == ("wall", "sky") and data[0].target["mask"].tolist() == [[255, 0], [1, 255]]


def test_classes_that_are_counted_from_1(tmp_path):
    scenes(tmp_path, objects="")
    (tmp_path / "classes.txt").write_text("wall\nbuilding\nsky\n")
    data = mask(f"masks:{tmp_path}?first=1")
    assert data.classes == ("wall", "building", "sky") and data[0].target["mask"].tolist() == [[255, 0], [1, 2]]
    with pytest.raises(DataError, match="has the value 3, but there are 3 classes"):
        mask(f"masks:{tmp_path}")
    (tmp_path / "classes.txt").unlink()
    assert mask(f"masks:{tmp_path}?first=1").classes == ("1", "2", "3")
    assert mask(f"masks:{tmp_path}").classes == ("0", "1", "2", "3")
    for value in ("²", "1" * 5000):
        (tmp_path / "classes.txt").write_text(f"wall\nvoid={value}\n")
        with pytest.raises(UsageError, match="is no mask value"):
            mask(f"masks:{tmp_path}")
    with pytest.raises(UsageError, match=r"masks.first = 2 does not fit"):
        mask(f"masks:{tmp_path}?first=2")


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        (OBJECTS + "4\t0.1\tdoor\n", 'objectInfo150.txt", line 5: .* does not fit'),
        (OBJECTS + "x\t0.1\t1\t1\t1\tdoor\n", 'objectInfo150.txt", line 5: x is no mask value'),
        (OBJECTS + "4\t0.1\t1\t1\t1\tsky\n", 'objectInfo150.txt" names the class "sky" twice'),
        (OBJECTS[:30], "names no class"),
        ("\n".join(OBJECTS.split("\n")[:2]), "has the value 2, but there are 1 classes"),
    ],
)
def test_ade20k_lists_that_do_not_fit(tmp_path, objects, message):
    with pytest.raises((DataError, UsageError), match=message) as caught:
        mask(scenes(tmp_path, objects=objects))
    assert caught.value.hint


def test_a_class_that_is_named_twice(tmp_path):
    scenes(tmp_path, objects="")
    (tmp_path / "classes.txt").write_text("wall\nsky\nwall\nvoid=3\n")
    with pytest.raises(DataError, match=r'classes.txt" names the class "wall" twice'):
        mask(f"masks:{tmp_path}")


# Cityscapes


def streets(root: Path, **rows) -> str:
    for split, city in (("train", "aachen"), ("val", "ulm"), ("test", "bonn")):
        stem = f"{city}_000000_000019"
        image(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png")
        values(root / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png", rows.get(split, [[7, 8], [33, 4]]))
    return f"cityscapes:{root}"


def test_cityscapes_counts_the_19_classes_of_its_evaluation(tmp_path):
    data = mask(streets(tmp_path))
    assert len(data.classes) == 19 and data.classes[:2] == ("road", "sidewalk") and data.classes[18] == "bicycle"
    assert data[0].target["mask"].tolist() == [[0, 1], [18, 255]]
    assert data[0].name == "aachen_000000_000019_leftImg8bit.png"
    assert open_reader("cityscapes:x")[0].recognises(tmp_path)
    assert not open_reader("masks:x")[0].recognises(tmp_path)


def test_cityscapes_train_ids_are_in_the_order_of_the_ids(tmp_path):
    ids = sorted(EVALUATED)
    data = mask(streets(tmp_path, val=[[ids[2 * i + j] for j in range(2)] for i in range(2)]), "val")
    assert data[0].target["mask"].flatten().tolist() == [0, 1, 2, 3] and list(EVALUATED) == ids


def test_cityscapes_withholds_the_labels_of_its_test_split(tmp_path):
    data = streets(tmp_path, test=[[3, 3], [3, 3]])
    with pytest.raises(DataError, match='no labelled pixel in the split "test"') as caught:
        mask(data, "test")
    assert "?test=val" in caught.value.hint
    assert mask(f"{data}?test=val", "test")[0].name.startswith("ulm")


def test_cityscapes_without_a_mask_or_with_a_value_that_is_no_id(tmp_path):
    data = streets(tmp_path, val=[[34, 7], [7, 7]])
    with pytest.raises(DataError, match=r"ulm_.*labelIds.png\" has the value 34"):
        mask(data, "val")
    image(tmp_path / "leftImg8bit" / "train" / "aachen" / "lonely_leftImg8bit.png")
    with pytest.raises(DataError, match=r'lonely_leftImg8bit.png" has no mask') as caught:
        mask(data)
    assert "lonely_gtFine_labelIds.png" in caught.value.hint
    with pytest.raises(DataError, match=r'leftImg8bit" does not exist'):
        mask(f"cityscapes:{tmp_path / 'gtFine'}")


# Pascal VOC


def voc(root: Path, rows=((0, 1), (20, 255)), **lists: str) -> str:
    for name in ("2007_a", "2007_b", "2007_c"):
        image(root / "JPEGImages" / f"{name}.jpg")
        values(root / "SegmentationClass" / f"{name}.png", rows, palette=True)
    image(root / "JPEGImages" / "2008_boxes_only.jpg")
    folder = root / "ImageSets" / "Segmentation"
    folder.mkdir(parents=True, exist_ok=True)
    for split, names in ({"train": "2007_a", "val": "2007_b", "test": "2007_c"} | lists).items():
        (folder / f"{split}.txt").write_text(names.replace(" ", "\n"))
    return f"voc:{root}"


def test_voc_masks_have_pascals_classes(tmp_path):
    data = voc(tmp_path)
    train = mask(f"{data}?test=val")
    assert len(train.classes) == 21 and train.classes[::20] == ("background", "tvmonitor")
    assert train[0].target["mask"].tolist() == [[0, 1], [20, 255]]
    assert mask(f"{data}?test=val", "test")[0].name == "2007_b.jpg"
    assert open_reader(data)[0].recognises(tmp_path)


def test_voc_masks_have_the_classes_of_a_list(tmp_path):
    data = voc(tmp_path, rows=[[0, 1], [2, 255]])
    (tmp_path / "classes.txt").write_text("sky\nroad\nvoid=2\n")
    train = mask(data)
    assert train.classes == ("sky", "road") and train[0].target["mask"].tolist() == [[0, 1], [255, 255]]


def test_voc_masks_without_lists(tmp_path):
    voc(tmp_path)
    for file in (tmp_path / "ImageSets" / "Segmentation").iterdir():
        file.unlink()
    splits = [mask(f"voc:{tmp_path}", split) for split in ("train", "val", "test")]
    assert sorted(data[0].name for data in splits) == ["2007_a.jpg", "2007_b.jpg", "2007_c.jpg"]


@pytest.mark.parametrize(
    ("rows", "lists", "message"),
    [
        ([[0, 21], [1, 1]], {}, r"2007_a.png\" has the value 21, but there are 21 classes"),
        ([[0, 1], [1, 1]], {"train": "2007_a 2009_x"}, r'2009_x.png" has no image'),
        ([[0, 1], [1, 1]], {"train": "2007_a 2008_boxes_only"}, r'2008_boxes_only.png" does not exist'),
        ([[0, 1], [1, 1]], {"train": "2007_a 2007_a"}, r'train.txt", entry 2: "2007_a" is there twice'),
        ([[0, 1], [1, 1]], {"train": "../secret"}, r'train.txt", entry 1: "../secret" is no name of a file'),
        ([[0, 1]], {}, r'2007_a.png" is 2 x 1, its image 2 x 2'),
    ],
)
def test_voc_masks_that_cannot_be_used(tmp_path, rows, lists, message):
    with pytest.raises(DataError, match=message) as caught:
        mask(voc(tmp_path, rows=rows, **lists))
    assert caught.value.hint


def test_voc_boxes_can_be_tested_on_the_validation_split(tmp_path):
    for name in [f"t{i}" for i in range(10)] + ["v"]:
        image(tmp_path / "JPEGImages" / f"{name}.jpg")
        body = (
            "<object><name>x</name><bndbox><xmin>0</xmin><ymin>0</ymin><xmax>1</xmax><ymax>2</ymax></bndbox></object>"
        )
        (tmp_path / "Annotations").mkdir(exist_ok=True)
        (tmp_path / "Annotations" / f"{name}.xml").write_text(f"<annotation>{body}</annotation>")
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(f"t{i}" for i in range(10)))
    (lists / "val.txt").write_text("v\n")
    data = f"voc:{tmp_path}?test=val"
    found = {split: open_data(data, split, gives="boxes") for split in ("train", "val", "test")}
    assert [len(part) for part in found.values()] == [9, 1, 1] and found["test"][0].name == "v.jpg"
