"""YOLO label files: every layout, boxes and polygons, and bad input by file and entry."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from mtpeft.api import DataError, open_data
from mtpeft.data.reader import open_reader

BOX = "1 0.5 0.5 0.5 0.4"  # of an image of 8 x 10: [2, 3, 6, 7]
POLYGON = "0 0.25 0.2 0.75 0.2 0.75 0.6 0.25 0.6"  # [2, 2, 6, 6]
NAMES = "names: [cat, dog]\n"


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 10)).save(path)
    return path


def label(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))
    return path


def labelled(root: Path, images: str, *lines: str, name="a b é") -> None:
    image(root / images / f"{name}.png")
    label(root / images.replace("images", "labels") / f"{name}.txt", *lines)


def described(root: Path, *lines: str, yaml: str = NAMES) -> str:
    """Data with the same labels in every split: ``yolo:PATH`` of it."""
    for split in ("train", "val", "test"):
        labelled(root, f"images/{split}", *lines)
    (root / "data.yaml").write_text(f"train: images/train\nval: images/val\ntest: images/test\n{yaml}")
    return f"yolo:{root}"


def boxes(data: str, split="train", **options):
    return open_data(data, split, gives="boxes", **options)


def mask(data: str, split="train", **options):
    return open_data(data, split, gives="mask", **options)


YAMLS = [
    ("images/{0}", "train: images/train\nval: images/val\ntest: images/test\n"),
    ("images/{0}", "path: .\ntrain: [images/train]\nval: [images/val]\ntest: images/test\n"),
    ("set/images/{0}", "path: set\ntrain: images/train\nval: images/val\ntest: images/test\n"),
    ("images/{0}", "path: /home/author/sets/pets\ntrain: images/train\nval: images/val\ntest: images/test\n"),
    ("images/{0}", "path: ../datasets/pets\ntrain: images/train\nval: images/val\ntest: images/test\n"),
    ("{0}/images", "train: ../train/images\nval: ../val/images\ntest: ../test/images\n"),
    ("images/{0}", "train: train.txt\nval: val.txt\ntest: test.txt\n"),
]


@pytest.mark.parametrize(("images", "yaml"), YAMLS)
def test_every_layout_with_a_yaml(tmp_path, images, yaml):
    for split in ("train", "val", "test"):
        labelled(tmp_path, images.format(split), BOX, POLYGON, name=f"{split} é")
        (tmp_path / f"{split}.txt").write_text(f"./{images.format(split)}/{split} é.png\n")
    file = tmp_path / "data.yaml"
    file.write_text(yaml + "nc: 2\nnames:\n  0: cat\n  1: dog\n")
    for path in (tmp_path, file):
        for split in ("train", "val", "test"):
            data = boxes(f"yolo:{path}", split)
            assert data.classes == ("cat", "dog") and data[0].name.endswith(f"{split} é.png")
            assert data[0].target["boxes"].tolist() == [[2, 3, 6, 7], [2, 2, 6, 6]]
            assert data[0].target["labels"].tolist() == [1, 0] and not data[0].target["difficult"].any()
        assert open_reader("yolo:x")[0].recognises(path)


@pytest.mark.parametrize("images", ["images/{0}", "{0}/images"])
def test_folders_without_a_yaml(tmp_path, images):
    for split in ("train", "valid", "test"):
        labelled(tmp_path, images.format(split), BOX, name=split)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    names = {split: boxes(f"yolo:{tmp_path}", split)[0].name for split in ("train", "val", "test")}
    assert [Path(name).stem for name in names.values()] == ["train", "valid", "test"]
    assert open_reader("yolo:x")[0].recognises(tmp_path)


def test_images_without_splits_are_held_out_of(tmp_path):
    for number in range(20):
        labelled(tmp_path, "images", BOX, name=str(number))
    label(tmp_path / "labels" / "classes.txt", "cat", "dog")
    assert [len(boxes(f"yolo:{tmp_path}", split)) for split in ("train", "val", "test")] == [14, 2, 4]


def test_the_validation_split_can_be_the_one_to_test_on(tmp_path):
    data = described(tmp_path, BOX)
    for number in range(9):
        labelled(tmp_path, "images/train", BOX, name=str(number))
    (tmp_path / "data.yaml").write_text(f"train: images/train\nval: images/val\ntest:\n{NAMES}")
    assert [len(boxes(f"{data}?test=val", split)) for split in ("train", "val", "test")] == [9, 1, 1]
    assert boxes(f"{data}?test=val", "test")[0].name == "images/val/a b é.png"


def test_masks_from_polygons(tmp_path):
    data = mask(described(tmp_path, POLYGON))
    assert data.classes == ("background", "cat", "dog")
    shown = data[0].target["mask"]
    assert shown.shape == (10, 8) and shown[2:6, 2:6].min() == 1 and shown.sum() == 16
    with pytest.raises(DataError, match=r"a b é.txt\", entry 2 \(dog\) has no segmentation"):
        mask(described(tmp_path, POLYGON, BOX))


def test_images_without_labels_have_no_objects(tmp_path):
    data = described(tmp_path, BOX)
    image(tmp_path / "images" / "train" / "bare.png")
    labelled(tmp_path, "images/train", "", name="empty")
    target = [boxes(data)[index].target["boxes"].shape for index in range(3)]
    assert target == [(1, 4), (0, 4), (0, 4)]
    (tmp_path / "labels" / "train" / "a b é.txt").unlink()
    with pytest.raises(DataError, match='no objects in the split "train"'):
        boxes(data)


def test_labels_beside_images_of_another_folder(tmp_path):
    label(image(tmp_path / "pictures" / "a.png").with_suffix(".txt"), BOX)
    (tmp_path / "data.yaml").write_text(f"train: pictures\nval: pictures\ntest: pictures\n{NAMES}")
    assert len(boxes(f"yolo:{tmp_path}")[0].target["boxes"]) == 1


BAD_LINES = [
    ("2 0.5 0.5 0.2 0.2", 'entry 2: "2" is no class', "0 to 1"),
    ("-1 0.5 0.5 0.2 0.2", '"-1" is no class', "0 to 1"),
    ("1.5 0.5 0.5 0.2 0.2", '"1.5" is no class', "0 to 1"),
    ("² 0.5 0.5 0.2 0.2", '"²" is no class', "0 to 1"),
    ("1" * 5000 + " 0.5 0.5 0.2 0.2", '"11111111111111111111" is no class', "0 to 1"),
    ("1 0.5 0_0.5 0.2 0.2", "are no numbers", "spaces"),
    ("dog 0.5 0.5 0.2 0.2", '"dog" is no class', "data.yaml"),
    ("1", "entry 2 has 0 numbers after the class", "a box has 4"),
    ("1 0.5 0.5 0.2", "entry 2 has 3 numbers after the class", "a box has 4"),
    ("1 0.5 0.5 0.2 0.2 0.9", "entry 2 has 5 numbers after the class", "a polygon has 6"),
    ("1 0.5 0.5 x 0.2", 'entry 2: "0.5 0.5 x 0.2" are no numbers', "spaces"),
    ("1,0.5,0.5,0.2,0.2", '"1,0.5,0.5,0.2,0.2" is no class', "0 to 1"),
    ("1 0.5 0.5 nan 0.2", "entry 2: nan is no fraction", "divide pixels"),
    ("1 0.5 0.5 inf 0.2", "entry 2: inf is no fraction", "divide pixels"),
    ("1 300 200 50 50", "entry 2: 300 is no fraction", "divide pixels"),
    ("1 0.9 0.5 0.5 0.2", "entry 2 (dog): box [5.2, 4.0, 9.2, 6.0] is outside its image of 8 x 10", "outside=clip"),
    ("1 0.5 0.5 0 0.2", "entry 2 (dog): box [4.0, 4.0, 4.0, 6.0] has no area", "degenerate=skip"),
    ("1 0.5 0.5 -0.5 0.2", "has no area", "degenerate=skip"),
]


@pytest.mark.parametrize(("line", "message", "hint"), BAD_LINES)
def test_bad_lines_name_file_and_entry(tmp_path, line, message, hint):
    data = described(tmp_path, BOX, line)
    with pytest.raises(DataError) as caught:
        boxes(data)
    assert message in caught.value.message and "labels/train/a b é.txt" in caught.value.message
    assert hint in caught.value.hint
    reader, place = open_reader(data)
    reader.found = []
    assert len(reader.read(place, "train", gives="boxes", seed=0)[0].target["boxes"]) == 1
    assert [message in error.message for error in reader.found] == [True]


def test_boxes_may_be_clipped_and_skipped_and_rounding_is_no_matter(tmp_path):
    data = described(tmp_path, "1 0.9 0.5 0.5 0.2", "1 0.5 0.5 0 0.2", "0 0.5 0.5 1.000001 1.000001")
    found = boxes(f"{data}?outside=clip&degenerate=skip")[0].target["boxes"]
    assert found[0].tolist() == pytest.approx([5.2, 4, 8, 6]) and found[1].tolist() == [0, 0, 8, 10]


BAD_YAMLS = [
    ("names: [cat", "is not valid yaml"),
    ("\x00", "is not valid yaml"),
    ("[" * 5000, "is not valid yaml"),
    ("", "has no settings"),
    ("- a\n- b\n", "has no settings"),
    ("train: images/train\n", "has no names"),
    ("names: []\ntrain: images/train\n", "names no class"),
    ("names: [cat, 7]\n", ".names[1] does not fit: it should be a valid string"),
    ("names: [cat, no]\n", ".names[1] does not fit: it should be a valid string"),
    ("names: {0: cat, 2: dog}\ntrain: images/train\n", ".names has no 1"),
    ("names: [cat, cat]\ntrain: images/train\n", 'names the class "cat" twice'),
    ("names: [cat, dog]\nnc: 3\ntrain: images/train\n", "nc is 3, but there are 2 names"),
    ("names: [cat, dog]\ntrain: 5\n", ".train does not fit"),
    ("names: [cat, dog]\ntrain: images/trian\n", '.train: there is no file "images/trian"'),
    ("names: [cat, dog]\ntrain: /etc\n", '.train: "/etc" is outside of the data'),
    ("names: [cat, dog]\ntrain: images/../../..\n", "is outside of the data"),
    ("names: [cat, dog]\ntrain: empty\n", '.train: "empty" has no images'),
    ("names: [cat, dog]\ntrain: list.txt\n", 'list.txt", entry 2: "../../x.png" is outside of the data'),
    ("names: [cat, dog]\ntrain: [images/train, images/train]\n", 'a b é.png" is there twice'),
    ("names: [cat, dog]\ntrain: images/train\nkpt_shape: [17, 3]\n", "describes keypoints"),
    ("names: [cat, dog]\n", 'no split "train"'),
]


@pytest.mark.parametrize(("yaml", "message"), BAD_YAMLS)
def test_bad_yamls_name_file_and_field(tmp_path, yaml, message):
    data = described(tmp_path, BOX)
    (tmp_path / "empty").mkdir()
    label(tmp_path / "list.txt", "images/train/a b é.png", "../../x.png")
    (tmp_path / "data.yaml").write_text(yaml)
    with pytest.raises(DataError) as caught:
        boxes(data)
    assert message in caught.value.message and caught.value.hint


def test_labels_that_are_no_text(tmp_path):
    data = described(tmp_path, BOX)
    (tmp_path / "labels" / "train" / "a b é.txt").write_bytes(b"\xff\x00\xfe")
    with pytest.raises(DataError, match=r"labels/train/a b é.txt\" is not UTF-8"):
        boxes(data)


def test_a_folder_that_is_nothing_of_the_kind(tmp_path):
    with pytest.raises(DataError, match=r"has no data.yaml") as caught:
        boxes(f"yolo:{tmp_path}")
    assert "classes.txt" in caught.value.hint
    with pytest.raises(DataError, match="does not exist"):
        boxes(f"yolo:{tmp_path / 'pets'}")
    assert not open_reader("yolo:x")[0].recognises(tmp_path)
