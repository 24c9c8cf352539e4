"""Readers: every layout, held-out splits, and every kind of bad input as an error that names the file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtpeft.api import DataError, UsageError, open_data
from mtpeft.data.reader import open_reader
from mtpeft.plugins import registry
from mtpeft_tasks.readers import files

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="no shared/data beside the checkout")


def picture(path: Path, size=(12, 8), colour=0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour, 0, 0)).save(path)
    return path


def read(name: str, path: str, split: str, *, seed: int = 0, **options):
    """What a reader makes of a path, with its options as they stand in ``READER:PATH?option=value``."""
    query = "&".join(f"{key}={value}" for key, value in options.items())
    reader, place = open_reader(f"{name}:{path}?{query}")
    return reader.read(place, split, gives=reader.gives[0], seed=seed)


def names(data) -> list[str]:
    return [data[index].name for index in range(len(data))]


# folder


def image_folders(root: Path, *splits: str, count: int = 10) -> Path:
    for split in splits or ("",):
        for label in ("cat", "dog"):
            for number in range(count):
                picture(root / split / label / f"{number}.png", colour=number)
    return root


def test_folder_with_split_folders(tmp_path):
    image_folders(tmp_path, "train", "val", "test")
    for split in ("train", "val", "test"):
        data = read("folder", str(tmp_path), split)
        assert len(data) == 20 and data.classes == ("cat", "dog")
        assert data[10].name == f"{split}/dog/0.png" and data[10].target == {"label": 1, "classes": ("cat", "dog")}
        assert data[10].image.mode == "RGB"


def test_folder_holds_out_validation(tmp_path):
    image_folders(tmp_path, "train", "test", count=20)
    train, val, test = (read("folder", str(tmp_path), split, seed=1) for split in ("train", "val", "test"))
    assert Counter(val[i].target["label"] for i in range(len(val))) == {0: 2, 1: 2}
    assert len(train) == 36 and len(test) == 40
    assert not set(names(train)) & set(names(val))
    assert names(val) == names(read("folder", str(tmp_path), "val", seed=1))
    assert names(val) != names(read("folder", str(tmp_path), "val", seed=2))


def test_folder_without_splits_holds_out_both(tmp_path):
    image_folders(tmp_path)
    parts = [names(read("folder", str(tmp_path), split)) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [14, 2, 4]
    assert len({name for part in parts for name in part}) == 20


def test_folder_with_lists(tmp_path):
    image_folders(tmp_path / "photo")
    (tmp_path / "photo" / "train.txt").write_text("cat/0.png\ncat/1.png emu\ndog/2.png\n\n")
    (tmp_path / "photo" / "test.txt").write_text("dog/3.png\n")
    train = read("folder", str(tmp_path / "photo"), "train")
    assert train.classes == ("cat", "dog", "emu")
    assert [train.classes[train[i].target["label"]] for i in range(3)] == ["cat", "emu", "dog"]
    assert names(read("folder", str(tmp_path / "photo"), "test")) == ["dog/3.png"]


def test_folder_with_lists_of_the_parent(tmp_path):
    image_folders(tmp_path / "photo"), image_folders(tmp_path / "sketch")
    (tmp_path / "train.txt").write_text("photo/cat/0.png\nsketch/dog/1.png\nphoto/dog/2.png\n")
    (tmp_path / "test.txt").write_text("sketch/dog/4.png\nphoto/dog/3.png\n")
    assert names(read("folder", str(tmp_path / "photo"), "train")) == ["photo/cat/0.png", "photo/dog/2.png"]
    assert names(read("folder", str(tmp_path / "photo"), "test")) == ["photo/dog/3.png"]
    assert sum(len(read("folder", str(tmp_path), split)) for split in ("train", "val")) == 3


def test_folder_with_spaces_in_listed_names(tmp_path):
    picture(tmp_path / "big cat" / "a b.png")
    (tmp_path / "train.txt").write_text("big cat/a b.png\n")
    assert read("folder", str(tmp_path), "train").classes == ("big cat",)


def test_folder_keeps_some_classes(tmp_path):
    image_folders(tmp_path, "train", "test")
    data = read("folder", str(tmp_path), "test", classes="dog")
    assert data.classes == ("dog",) and len(data) == 10 and data[0].target["label"] == 0
    with pytest.raises(UsageError, match='no class "dgo"') as caught:
        read("folder", str(tmp_path), "test", classes="dgo")
    assert 'did you mean "dog"' in caught.value.hint


def test_folder_classes_file_fixes_the_order(tmp_path):
    image_folders(tmp_path, "train", "test")
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    assert read("folder", str(tmp_path), "train").classes == ("dog", "cat")
    (tmp_path / "classes.txt").write_text("dog\n")
    with pytest.raises(DataError, match=r'cat/0.png" has class "cat"'):
        read("folder", str(tmp_path), "train")


def test_folder_manifest(tmp_path):
    image_folders(tmp_path, "train", "test")
    manifest = read("folder", str(tmp_path), "test").manifest()
    assert manifest["count"] == 20 and manifest["histogram"] == {"cat": 10, "dog": 10}
    (tmp_path / "test/cat/0.png").rename(tmp_path / "test/cat/x.png")
    assert read("folder", str(tmp_path), "test").manifest()["sha256"] != manifest["sha256"]


def test_folder_that_does_not_exist(tmp_path):
    with pytest.raises(DataError, match='pets" does not exist') as caught:
        read("folder", str(tmp_path / "pets"), "train")
    assert "check the path" in caught.value.hint


@pytest.mark.parametrize("make", [lambda root: None, lambda root: picture(root / "loose.png")])
def test_folder_without_labels(tmp_path, make):
    make(tmp_path)
    with pytest.raises(DataError, match="no labelled images") as caught:
        read("folder", str(tmp_path), "train")
    assert "CLASS/image" in caught.value.hint


@pytest.mark.parametrize("line", ["cat/99.png", "cat/99.png cat"])
def test_folder_list_naming_a_missing_file(tmp_path, line):
    image_folders(tmp_path)
    (tmp_path / "train.txt").write_text(f"cat/0.png\n{line}\n")
    with pytest.raises(DataError, match=r'train.txt", entry 2: there is no file "cat/99.png"'):
        read("folder", str(tmp_path), "train")


def test_an_image_that_is_none_is_found_before_training(tmp_path):
    image_folders(tmp_path, "train", "test")
    (tmp_path / "test/cat/bad.png").write_text("hello")
    with pytest.raises(DataError, match=r'bad.png" cannot be read: not an image') as caught:
        read("folder", str(tmp_path), "test")
    assert "remove the file" in caught.value.hint


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tif", "webp"])
def test_a_truncated_image_is_found_when_read(tmp_path, suffix):
    random = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    path = tmp_path / f"half.{suffix}"
    Image.fromarray(random).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=rf'half.{suffix}" cannot be read'):
        files.read_image(path)


def test_a_list_that_is_no_text(tmp_path):
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(DataError, match="not UTF-8"):
        files.read_lines(tmp_path / "train.txt")


# voc


def annotation(root: Path, name: str, *boxes: tuple, size=(40, 30), **fields: str) -> Path:
    picture(root / "JPEGImages" / f"{name}.jpg", size)
    body = "".join(
        f"<object><name>{label}</name><difficult>{fields.get('difficult', '0')}</difficult><bndbox>"
        f"<xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for label, a, b, c, d in boxes
    )
    file = root / "Annotations" / f"{name}.xml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"<annotation>{body}</annotation>")
    return file


def voc_lists(root: Path, **splits: str) -> None:
    (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    for split, lines in splits.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(lines.replace(" ", "\n"))


def test_voc_reads_boxes_and_lists(tmp_path):
    annotation(tmp_path, "a", ("RBC", 1, 2, 30, 20), ("WBC", 5, 5, 9, 9))
    annotation(tmp_path, "b", ("WBC", 0, 0, 40, 30), difficult="1")
    annotation(tmp_path, "c")
    voc_lists(tmp_path, train="a c", val="c", test="b")
    train, test = read("voc", str(tmp_path), "train"), read("voc", str(tmp_path), "test")
    assert train.classes == test.classes == ("RBC", "WBC")
    target = train[0].target
    assert target["boxes"].tolist() == [[1, 2, 30, 20], [5, 5, 9, 9]] and target["labels"].tolist() == [0, 1]
    assert target["difficult"].tolist() == [False, False] and test[0].target["difficult"].tolist() == [True]
    assert train[1].target["boxes"].shape == (0, 4) and train[0].name == "a.jpg"
    assert train.manifest()["histogram"] == {"RBC": 1, "WBC": 1}


def test_voc_without_lists_holds_out(tmp_path):
    for number in range(20):
        annotation(tmp_path, f"{number:02}", ("x", 1, 1, 5, 5))
    parts = [names(read("voc", str(tmp_path), split)) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [14, 2, 4] and len({n for part in parts for n in part}) == 20


def test_voc_options(tmp_path):
    annotation(tmp_path, "a", ("x", 5, 5, 5, 9), ("y", -3, 1, 50, 9), ("y", 1, 1, 2, 2))
    voc_lists(tmp_path, train="a", val="a", test="a")
    data = read("voc", str(tmp_path), "train", degenerate="skip", outside="clip")
    assert data[0].target["boxes"].tolist() == [[0, 1, 40, 9], [1, 1, 2, 2]]
    shifted = read("voc", str(tmp_path), "train", outside="clip", origin="1", classes="x")
    assert shifted[0].target["boxes"].tolist() == [[4, 4, 5, 9]] and shifted.classes == ("x",)
    with pytest.raises(UsageError, match=r'voc.degenerate = "skp" does not fit') as caught:
        read("voc", str(tmp_path), "train", degenerate="skp")
    assert caught.value.hint == 'did you mean "skip"? There is: error, skip.'


BAD_BOXES = [
    (("x", 5, 5, 5, 9), r"object 1 \(x\): box \[5.0, 5.0, 5.0, 9.0\] has no area", "degenerate=skip"),
    (("x", 9, 5, 5, 9), "has no area", "degenerate=skip"),
    (("x", 1, 1, 41, 9), "is outside its image of 40 x 30", "outside=clip"),
    (("x", -1, 1, 4, 9), "is outside its image", "outside=clip"),
    (("x", "nan", 1, 4, 9), "is outside its image", "outside=clip"),
    (("x", "one", 1, 4, 9), 'object 1: bndbox/xmin "one" is no number', "pixels"),
    (("x", "", 1, 4, 9), "object 1: no bndbox/xmin", "complete"),
    (("", 1, 1, 4, 9), "object 1: no name", "complete"),
]


@pytest.mark.parametrize(("box", "message", "hint"), BAD_BOXES)
def test_voc_bad_boxes(tmp_path, box, message, hint):
    annotation(tmp_path, "bad", box)
    voc_lists(tmp_path, train="bad", val="bad", test="bad")
    with pytest.raises(DataError, match=message) as caught:
        read("voc", str(tmp_path), "train")
    assert "bad.xml" in caught.value.message and hint in caught.value.hint


def test_voc_broken_xml_missing_files_and_no_objects(tmp_path):
    file = annotation(tmp_path, "a")
    voc_lists(tmp_path, train="a", val="a", test="a")
    with pytest.raises(DataError, match='no objects in the split "train"'):
        read("voc", str(tmp_path), "train")
    annotation(tmp_path, "a", ("x", 1, 1, 4, 4))
    voc_lists(tmp_path, train="a b")
    with pytest.raises(DataError, match=r'b.xml" does not exist'):
        read("voc", str(tmp_path), "train")
    annotation(tmp_path, "b", ("x", 1, 1, 4, 4))
    (tmp_path / "JPEGImages/b.jpg").unlink()
    with pytest.raises(DataError, match=r'b.xml" has no image'):
        read("voc", str(tmp_path), "train")
    file.write_text("<annotation><object>")
    with pytest.raises(DataError, match=r'a.xml" is not valid xml'):
        read("voc", str(tmp_path), "train")


def test_voc_without_annotations(tmp_path):
    (tmp_path / "Annotations").mkdir()
    with pytest.raises(DataError, match="has no annotations"):
        read("voc", str(tmp_path), "train")


def test_voc_name_not_among_the_classes(tmp_path):
    annotation(tmp_path, "a", ("x", 1, 1, 4, 4))
    (tmp_path / "classes.txt").write_text("y\n")
    with pytest.raises(DataError, match=r'a.xml", object 1: name "x" is not in'):
        read("voc", str(tmp_path), "train")


# masks


def pair(root: Path, split: str, name: str, values, size=None, mode="L") -> Path:
    values = np.asarray(values, np.uint8)
    picture(root / split / f"{name}.jpg", size or values.shape[::-1])
    path = root / f"{split}annot" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.fromarray(values)
    if mode == "P":
        mask.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    mask.save(path)
    return path


def mask_folders(root: Path) -> Path:
    for split in ("train", "val", "test"):
        pair(root, split, "one", [[0, 1], [2, 255]])
        pair(root, split, "two", [[1, 1, 3]], mode="P")
    (root / "classes.txt").write_text("sky\nroad\ntree\nvoid=3\n")
    return root


def test_masks_read_values_palettes_and_void(tmp_path):
    data = read("masks", str(mask_folders(tmp_path)), "val")
    assert data.classes == ("sky", "road", "tree") and names(data) == ["one.jpg", "two.jpg"]
    assert data[0].target["mask"].tolist() == [[0, 1], [2, 255]] and data[1].target["mask"].tolist() == [[1, 1, 255]]
    assert data.manifest()["histogram"] == {"sky": 1, "road": 3, "tree": 1}


def test_masks_keep_some_classes_and_ignore_values(tmp_path):
    data = read("masks", str(mask_folders(tmp_path)), "train", classes="tree,road")
    assert data.classes == ("road", "tree") and data[0].target["mask"].tolist() == [[255, 0], [1, 255]]
    assert data.manifest()["histogram"] == {"road": 3, "tree": 1}
    data = read("masks", str(tmp_path), "train", void="0")
    assert data.classes == ("road", "tree") and data[0].target["mask"].tolist() == [[255, 0], [1, 255]]


def test_masks_without_classes_file_are_named_by_value(tmp_path):
    (mask_folders(tmp_path) / "classes.txt").unlink()
    assert read("masks", str(tmp_path), "test").classes == ("0", "1", "2", "3")


@pytest.mark.parametrize("layout", ["{kind}/{split}", "{split}/{kind}"])
def test_masks_layouts(tmp_path, layout):
    for split in ("train", "test"):
        path = pair(tmp_path / "made", split, "one", [[0, 1]])
        for kind, file in (("images", path.parents[1] / split / "one.jpg"), ("masks", path)):
            place = tmp_path / layout.format(kind=kind, split=split)
            place.mkdir(parents=True)
            file.rename(place / file.name)
    assert len(read("masks", str(tmp_path), "test")) == 1


def test_masks_without_splits_hold_out(tmp_path):
    for number in range(20):
        picture(tmp_path / "images" / f"{number}.jpg", (2, 1))
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.array([[0, 1]], np.uint8)).save(tmp_path / "masks" / f"{number}.png")
    assert [len(read("masks", str(tmp_path), split)) for split in ("train", "val", "test")] == [14, 2, 4]


def test_masks_value_out_of_range(tmp_path):
    pair(mask_folders(tmp_path), "train", "bad", [[0, 7]])
    with pytest.raises(DataError, match=r'bad.png" has the value 7, but there are 3 classes') as caught:
        read("masks", str(tmp_path), "train")
    assert "?void=7" in caught.value.hint


def test_masks_missing(tmp_path):
    picture(mask_folders(tmp_path) / "train" / "lonely.jpg")
    with pytest.raises(DataError, match=r'lonely.jpg" has no mask') as caught:
        read("masks", str(tmp_path), "train")
    assert "lonely.png" in caught.value.hint


def test_masks_of_another_size(tmp_path):
    pair(mask_folders(tmp_path), "train", "bad", [[0, 1]], size=(5, 4))
    with pytest.raises(DataError, match=r'bad.png" is 2 x 1, its image 5 x 4'):
        read("masks", str(tmp_path), "train")


def test_masks_in_colours_or_beyond_bytes(tmp_path):
    path = pair(mask_folders(tmp_path), "train", "bad", [[0, 1]])
    Image.new("RGB", (2, 1)).save(path)
    with pytest.raises(DataError, match=r'bad.png" is a colour image') as caught:
        read("masks", str(tmp_path), "train")
    assert "palette" in caught.value.hint
    Image.fromarray(np.array([[0, 300]], np.uint16)).save(path)
    with pytest.raises(DataError, match="the value 300, above 255"):
        read("masks", str(tmp_path), "train")


def test_masks_corrupt_or_without_any_label(tmp_path):
    path = pair(mask_folders(tmp_path), "train", "bad", [[0, 1]])
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r'bad.png" cannot be read'):
        read("masks", str(tmp_path), "train")
    for name in ("one", "two"):
        pair(tmp_path, "val", name, [[255, 3]])
    with pytest.raises(DataError, match='no labelled pixel in the split "val"'):
        read("masks", str(tmp_path), "val")


def test_masks_empty_folder_and_bad_void(tmp_path):
    with pytest.raises(DataError, match="no images with masks") as caught:
        read("masks", str(tmp_path), "train")
    assert "trainannot" in caught.value.hint
    with pytest.raises(UsageError, match=r'masks.void = \["sky"\] does not fit'):
        read("masks", str(mask_folders(tmp_path)), "train", void="sky")
    (tmp_path / "classes.txt").write_text("void=3\n")
    with pytest.raises(DataError, match="names no class"):
        read("masks", str(tmp_path), "train")


# READER:PATH


def test_open_data_with_options(tmp_path):
    image_folders(tmp_path, "train", "test")
    data = open_data(f"folder:{tmp_path}?classes=dog", "test", gives="label")
    assert data.classes == ("dog",)
    assert open_data(f"folder:{tmp_path}", "test", gives="label", classes=("cat",)).classes == ("cat",)


def test_open_data_refusals(tmp_path):
    image_folders(tmp_path, "train", "test")
    (tmp_path / "val").mkdir()
    cases = [
        (str(tmp_path), "is not READER:PATH", "folder:"),
        (f"foldr:{tmp_path}", "foldr", 'did you mean "folder"'),
        (f"folder:{tmp_path}?class=dog", "there is no setting folder.class", 'did you mean "classes"'),
    ]
    for data, message, hint in cases:
        with pytest.raises(UsageError, match=message) as caught:
            open_data(data, "test", gives="label")
        assert hint in caught.value.hint
    with pytest.raises(UsageError, match='reader "folder" gives no boxes'):
        open_data(f"folder:{tmp_path}", "test", gives="boxes")
    with pytest.raises(DataError, match='no samples for the split "val"'):
        open_data(f"folder:{tmp_path}", "val", gives="label")


@pytest.mark.parametrize(("option", "message"), [("void=300", "300"), ("void=-1", "-1")])
def test_values_that_no_mask_has(tmp_path, option, message):
    with pytest.raises(UsageError, match=f"void: {message} is no mask value"):
        open_data(f"masks:{mask_folders(tmp_path)}?{option}", "test", gives="mask")


def test_a_reader_that_collects_goes_on(tmp_path):
    annotation(tmp_path, "a", ("x", 5, 5, 5, 9), ("x", 1, 1, 50, 9), ("x", 1, 1, 2, 2))
    annotation(tmp_path, "b").write_text("<annotation>")
    annotation(tmp_path, "c", ("x", 1, 1, 2, 2))
    (tmp_path / "JPEGImages/c.jpg").write_text("no image")
    voc_lists(tmp_path, train="a b c", val="a", test="a")
    reader, place = open_reader(f"voc:{tmp_path}")
    reader.found = []
    data = reader.read(place, "train", gives="boxes", seed=0)
    assert len(data) == 1 and data[0].target["boxes"].tolist() == [[1, 1, 2, 2]]
    words = ("b.xml", "no area", "outside its image", "c.jpg")
    assert [word in error.message for word, error in zip(words, reader.found, strict=True)] == [True] * 4


@pytest.mark.parametrize("make", [image_folders, mask_folders, lambda root: annotation(root, "a", ("x", 1, 1, 2, 2))])
def test_a_layout_is_recognised_by_its_own_reader_alone(tmp_path, make):
    make(tmp_path)
    own = {"image_folders": "folder", "mask_folders": "masks"}.get(make.__name__, "voc")
    seen = {name for name in registry("readers") if open_reader(f"{name}:{tmp_path}")[0].recognises(tmp_path)}
    assert own in seen and "folder" not in seen - {own}


# real data


@needs_data
@pytest.mark.shared_data
def test_real_degenerate_boxes_are_named():
    with pytest.raises(DataError, match=r"BloodImage_00343.xml.*no area"):
        read("voc", str(SHARED / "bccd"), "train")
    with pytest.raises(DataError, match=r"BloodImage_00338.xml.*no area"):
        read("voc", str(SHARED / "bccd"), "val")


@needs_data
@pytest.mark.shared_data
def test_real_detection_counts():
    parts = [read("voc", str(SHARED / "bccd"), split, degenerate="skip") for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [205, 87, 72]
    totals = sum((Counter(part.manifest()["histogram"]) for part in parts), Counter())
    assert totals == {"RBC": 4155 - 2, "WBC": 372, "Platelets": 361}


@needs_data
@pytest.mark.shared_data
def test_real_segmentation_counts():
    data = read("masks", str(SHARED / "camvid"), "val")
    assert len(data) == 101 and len(data.classes) == 11 and data[0].target["mask"].shape == (360, 480)
    assert set(data[0].target["mask"].unique().tolist()) <= {*range(11), 255}


@needs_data
@pytest.mark.shared_data
@pytest.mark.parametrize(("path", "counts"), [("pacs/photo", (315, 35, 175)), ("cifar10_small", (2700, 300, 1000))])
def test_real_folders(path, counts):
    assert tuple(len(read("folder", str(SHARED / path), split)) for split in ("train", "val", "test")) == counts
