"""COCO json: every layout, boxes and masks from polygons and run lengths, and bad entries by file and field."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image

from mtpeft.api import DataError, UsageError, open_data
from mtpeft.config import Overrides, load
from mtpeft.data.reader import open_reader
from mtpeft.training.setup import setup
from mtpeft_tasks.readers import coco_json

SQUARE = [[1, 1, 5, 1, 5, 4, 1, 4]]
RUNS = {"size": [5, 7], "counts": [11, 2, 3, 2, 3, 2, 12]}  # rows 1 and 2 of columns 2 to 4
CATEGORIES = [{"id": 9, "name": "dog"}, {"id": 2, "name": "none"}, {"id": 4, "name": "cat"}]


def picture(path: Path, size=(7, 5)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)
    return path


def entry(image=1, category=4, **fields) -> dict:
    return {"image_id": image, "category_id": category, "bbox": [1, 1, 4, 3], "segmentation": SQUARE} | fields


def document(*annotations: dict, names=("a.png",), **sections) -> dict:
    """A COCO json of images of 7 x 5 pixels, numbered from 1."""
    pictures = [{"id": i, "file_name": name, "width": 7, "height": 5} for i, name in enumerate(names, 1)]
    numbered = [{"id": 10 * i, **annotation} for i, annotation in enumerate(annotations, 1)]
    return {"images": pictures, "categories": CATEGORIES, "annotations": numbered} | sections


def write(file: Path, content: dict | list | str | bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def single(root: Path, *annotations: dict, names=("a.png",), **sections) -> str:
    """Data with the same annotations in every split: ``coco:PATH`` of it."""
    for split in ("train", "val", "test"):
        for name in names:
            picture(root / split / name)
        write(root / split / "_annotations.coco.json", document(*annotations, names=names, **sections))
    return f"coco:{root}"


def boxes(data: str, split="train", **options):
    return open_data(data, split, gives="boxes", **options)


def mask(data: str, split="train", **options):
    return open_data(data, split, gives="mask", **options)


# layouts

LAYOUTS = [
    ("annotations/instances_{0}2017.json", "{0}2017/{1}", {"val": "val"}),
    ("annotations/instances_{0}2014.json", "images/{0}2014/{1}", {"val": "val"}),
    ("annotations/{0}.json", "images/{1}", {"val": "val"}),
    ("annotations/{0}.json", "images/{0}/{1}", {"val": "val"}),
    ("{0}/_annotations.coco.json", "{0}/{1}", {"val": "valid"}),
    ("{0}set/annotations.json", "{0}set/JPEGImages/{1}", {"train": "training"}),
]


@pytest.mark.parametrize(("file", "image", "named"), LAYOUTS)
def test_every_layout(tmp_path, file, image, named):
    for number, split in enumerate(("train", "val", "test")):
        folder, names = named.get(split, split), [f"{split}{i} é.png" for i in range(number + 1)]
        for name in names:
            picture(tmp_path / image.format(folder, name))
        annotations = [entry(image=i + 1) for i in range(number + 1)]
        write(tmp_path / file.format(folder), document(*annotations, names=names))
    for number, split in enumerate(("train", "val", "test")):
        data = boxes(f"coco:{tmp_path}", split)
        assert [data[i].name for i in range(len(data))] == [f"{split}{i} é.png" for i in range(number + 1)]
        assert data.classes == ("cat",) and data[0].image.size == (7, 5)
    assert open_reader(f"coco:{tmp_path}")[0].recognises(tmp_path)


def test_splits_with_the_same_file_names_are_kept_apart(tmp_path):
    for split, size in (("train", (7, 5)), ("val", (9, 5))):
        picture(tmp_path / "images" / split / "1.png", size)
        images = [{"id": 1, "file_name": "1.png"}]
        write(tmp_path / "annotations" / f"{split}.json", document(entry(), images=images))
    assert boxes(f"coco:{tmp_path}", "val")[0].image.size == (9, 5)


def test_names_with_their_folder(tmp_path):
    picture(tmp_path / "deep" / "er" / "a.png")
    write(tmp_path / "annotations.json", document(entry(), names=["deep/er/a.png"]))
    assert boxes(f"coco:{tmp_path}")[0].name == "deep/er/a.png"


def test_a_json_itself_and_where_its_images_are(tmp_path):
    names = [f"{i}.png" for i in range(20)]
    for name in names:
        picture(tmp_path / "pictures" / name)
    file = write(tmp_path / "annotations" / "all.json", document(*[entry(i) for i in range(1, 21)], names=names))
    with pytest.raises(DataError, match=r'all.json", images\[0\].file_name: there is no file "0.png"') as caught:
        boxes(f"coco:{file}")
    assert "?images=FOLDER" in caught.value.hint
    parts = [boxes(f"coco:{file}?images=pictures", split) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [14, 2, 4]
    assert {part[i].name for part in parts for i in range(len(part))} == set(names)
    assert open_reader("coco:x")[0].recognises(file)


def test_the_validation_split_can_be_the_one_to_test_on(tmp_path):
    for split, names in (("train", [f"{i}.png" for i in range(20)]), ("val", ["v.png"])):
        for name in names:
            picture(tmp_path / f"{split}2017" / name)
        entries = [entry(i) for i in range(1, len(names) + 1)]
        write(tmp_path / f"annotations/instances_{split}2017.json", document(*entries, names=names))
    data = f"coco:{tmp_path}?test=val"
    assert [len(boxes(data, split)) for split in ("train", "val", "test")] == [18, 2, 1]
    assert boxes(data, "test")[0].name == "v.png"
    (tmp_path / "annotations/instances_train2017.json").unlink()
    with pytest.raises(DataError, match='no split "train" and no training data') as caught:
        boxes(f"coco:{tmp_path}", "train")
    assert "it has: val" in caught.value.hint
    (tmp_path / "annotations/instances_val2017.json").rename(tmp_path / "annotations/instances_train2017.json")
    with pytest.raises(DataError, match="no validation split to test on"):
        boxes(data, "test")


def test_a_folder_without_json(tmp_path):
    with pytest.raises(DataError, match="has no COCO json") as caught:
        boxes(f"coco:{tmp_path}")
    assert "_annotations.coco.json" in caught.value.hint
    assert not open_reader("coco:x")[0].recognises(tmp_path)
    write(tmp_path / "annotations.json", {"version": 1})
    assert not open_reader("coco:x")[0].recognises(tmp_path)


# boxes and masks


def test_boxes_and_crowds(tmp_path):
    data = boxes(single(tmp_path, entry(), entry(category=9, bbox=[0.5, 1, 2, 3.5], iscrowd=1)))
    target = data[0].target
    assert data.classes == ("cat", "dog")
    assert target["boxes"].tolist() == [[1, 1, 5, 4], [0.5, 1, 2.5, 4.5]] and target["labels"].tolist() == [0, 1]
    assert target["difficult"].tolist() == [False, True] and "mask" not in target
    assert data.manifest()["histogram"] == {"cat": 1, "dog": 1}


def test_boxes_of_segmentations_where_bbox_is_missing(tmp_path):
    some = [entry(bbox=None, segmentation=shape) for shape in (SQUARE, RUNS, RUNS | {"counts": ";230009"})]
    del some[0]["bbox"]
    assert boxes(single(tmp_path, *some))[0].target["boxes"].tolist() == [[1, 1, 5, 4], [2, 1, 5, 3], [2, 1, 5, 3]]


def test_masks_show_smaller_objects_over_larger_ones(tmp_path):
    large, small = entry(segmentation=SQUARE), entry(category=9, segmentation=RUNS)
    expected = [
        [0, 0, 0, 0, 0, 0, 0],
        [0, 1, 2, 2, 2, 0, 0],
        [0, 1, 2, 2, 2, 0, 0],
        [0, 1, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
    ]
    for number, order in enumerate([(large, small), (small, large)]):
        data = mask(single(tmp_path / str(number), *order))
        assert data.classes == ("background", "cat", "dog") and "boxes" not in data[0].target
        assert data[0].target["mask"].tolist() == expected and data[0].target["mask"].dtype == torch.uint8
        assert data.manifest()["histogram"] == {"background": 1, "cat": 1, "dog": 1}


def test_masks_of_some_classes_ignore_the_others(tmp_path):
    data = single(tmp_path, entry(), entry(category=9, segmentation=RUNS))
    some = mask(data, classes=("cat",))
    assert some.classes == ("background", "cat") and some[0].target["mask"][1].tolist() == [0, 1, 255, 255, 255, 0, 0]
    assert mask(data, classes=("background", "cat")).classes == ("background", "cat")
    without = mask(f"{data}?background=ignore")
    assert without.classes == ("cat", "dog")
    assert without[0].target["mask"][3].tolist() == [255, 0, 0, 0, 0, 255, 255]


def test_a_category_that_nothing_uses_is_dropped_unless_it_is_named(tmp_path):
    data = single(tmp_path, entry(), entry(category=9))
    assert boxes(data).classes == ("cat", "dog")
    assert boxes(data, classes=("dog", "none")).classes == ("none", "dog")
    with pytest.raises(UsageError, match='no class "nome"') as caught:
        boxes(data, classes=("nome",))
    assert 'did you mean "none"' in caught.value.hint


def test_a_category_named_background_is_the_background(tmp_path):
    categories = [{"id": 4, "name": "background"}, {"id": 9, "name": "dog"}]
    objects = [entry(segmentation=RUNS), entry(category=9)]
    data = mask(single(tmp_path, *objects, categories=categories))
    assert data.classes == ("background", "dog") and data[0].target["mask"][1].tolist() == [0, 1, 0, 0, 0, 0, 0]


def test_outlines_may_overshoot_a_little_in_masks(tmp_path):
    wide = [[0, 0, 7.05, 0, 7.05, 5, 0, 5]]
    assert (mask(single(tmp_path / "a", entry(segmentation=wide)))[0].target["mask"] == 1).all()
    with pytest.raises(DataError, match=r"annotations\[0\] \(cat\): box .* is outside its image of 7 x 5"):
        mask(single(tmp_path / "b", entry(segmentation=[[0, 0, 9, 0, 9, 5, 0, 5]])))
    clipped = mask(single(tmp_path / "b", entry(segmentation=[[0, 0, 9, 0, 9, 5, 0, 5]])) + "?outside=clip")
    assert (clipped[0].target["mask"] == 1).all()


def test_what_is_read_travels_to_workers(tmp_path):
    data = single(tmp_path, entry(), entry(category=9, segmentation=RUNS))
    for read, target in ((boxes(data), "boxes"), (mask(data), "mask")):
        assert pickle.loads(pickle.dumps(read))[0].target[target].equal(read[0].target[target])


def test_images_without_objects_stay(tmp_path):
    data = single(tmp_path, entry(), names=["a.png", "empty.png"])
    assert boxes(data)[1].target["boxes"].shape == (0, 4)
    assert not mask(data)[1].target["mask"].any()


# bad input

BAD_ENTRIES = [
    (entry(image=7), r"annotations[0].image_id 7 is the id of no image"),
    (entry(category=3), r"annotations[0].category_id 3 is the id of no category"),
    (entry(image=None), "annotations[0].image_id does not fit: it should be a valid integer"),
    (entry(category=4.5), "annotations[0].category_id does not fit"),
    ({"image_id": 1}, "annotations[0] has no category_id"),
    (entry(bbox=None, segmentation=[]), "annotations[0] has neither bbox nor segmentation"),
    (entry(bbox=[1, 1, 4]), "annotations[0] has no bbox[3]"),
    (entry(bbox=[1, 1, "4", 3]), "annotations[0].bbox[2] does not fit: it should be a valid number"),
    (entry(bbox=[1, 1, float("nan"), 3]), "annotations[0].bbox[2] does not fit: it should be a finite number"),
    (entry(bbox=[1, 1, float("inf"), 3]), "annotations[0].bbox[2] does not fit: it should be a finite number"),
    (entry(bbox={"x": 1}), "annotations[0].bbox does not fit"),
    (entry(iscrowd="maybe"), "annotations[0].iscrowd does not fit"),
    (entry(segmentation=[[1, 1, 2, "x"]]), "annotations[0].segmentation: polygon 0 is no list of numbers"),
    (entry(segmentation="x"), "annotations[0].segmentation: 'x' is neither polygons nor run lengths"),
    (entry(segmentation={"size": [5, 7]}), "annotations[0].segmentation: counts are neither"),
    (entry(segmentation=RUNS | {"counts": "o"}), "annotations[0].segmentation: counts are no compressed run lengths"),
    (entry(bbox=[5, 1, 4, 3]), "annotations[0] (cat): box [5.0, 1.0, 9.0, 4.0] is outside its image of 7 x 5"),
    (entry(bbox=[5, 1, 0, 3]), "annotations[0] (cat): box [5.0, 1.0, 5.0, 4.0] has no area"),
    (entry(bbox=[5, 1, -2, 3]), "annotations[0] (cat): box [5.0, 1.0, 3.0, 4.0] has no area"),
]


@pytest.mark.parametrize(("wrong", "message"), BAD_ENTRIES)
def test_bad_annotations_name_file_and_field(tmp_path, wrong, message):
    data, gives = single(tmp_path, wrong, entry()), "mask" if ".segmentation:" in message else "boxes"
    with pytest.raises(DataError) as caught:
        (mask if gives == "mask" else boxes)(data)
    assert "_annotations.coco.json" in caught.value.message and message in caught.value.message and caught.value.hint
    reader, place = open_reader(data)
    reader.found = []
    target = reader.read(place, "train", gives=gives, seed=0)[0].target[gives]
    assert len(target) == 1 if gives == "boxes" else (target == 1).any()
    assert [message in error.message for error in reader.found] == [True]


@pytest.mark.parametrize("segmentation", [[[]], {}, "", [[1, 1]], [[1, 1, 2, "x"]], "x", {"size": [5, 7]}, 4, [{}]])
def test_boxes_do_not_need_segmentations(tmp_path, segmentation):
    data = single(tmp_path, entry(segmentation=segmentation))
    assert boxes(data)[0].target["boxes"].equal(boxes(single(tmp_path / "b", entry()))[0].target["boxes"])


@pytest.mark.parametrize("bbox", [[1, 1, 4], "x", [1, 1, "4", 3], [0, 0, float("nan"), 1], [5, 1, 0, 3], {}])
def test_masks_do_not_need_boxes(tmp_path, bbox):
    assert (mask(single(tmp_path, entry(bbox=bbox)))[0].target["mask"] == 1).any()


def test_numbers_as_exporters_write_them(tmp_path):
    plain = boxes(single(tmp_path / "plain", entry()))
    odd = entry() | {"category_id": 4.0, "image_id": 1.0, "iscrowd": None, "id": 10.0}
    data = single(tmp_path / "odd", odd)
    file = next((tmp_path / "odd").rglob("*.json"))
    tree = json.loads(file.read_text())
    tree["images"][0] |= {"width": 7.0, "height": 5.0, "id": 1.0}
    tree["categories"] = [{**category, "id": float(category["id"])} for category in tree["categories"]]
    file.write_text(json.dumps(tree))
    found = boxes(data)
    assert all(found[0].target[name].equal(plain[0].target[name]) for name in ("boxes", "labels", "difficult"))


def test_masks_need_segmentations_of_their_images_size(tmp_path):
    with pytest.raises(DataError, match=r"annotations\[0\] \(cat\) has no segmentation"):
        mask(single(tmp_path / "a", entry(segmentation=None)))
    with pytest.raises(DataError, match=r"the segmentation's size is \[7, 5\], its image's \[5, 7\]"):
        mask(single(tmp_path / "b", entry(segmentation=RUNS | {"size": [7, 5]})))
    with pytest.raises(DataError, match="has no area"):
        mask(single(tmp_path / "c", entry(segmentation=[[1, 1, 3, 3]])))
    skipped = mask(single(tmp_path / "c", entry(segmentation=[[1, 1, 3, 3]]), entry()) + "?degenerate=skip")
    assert len(skipped.items[0].objects) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"images": [{"id": 1, "file_name": "a.png"}, {"id": 1, "file_name": "b.png"}]},
            'images[1]: "b.png" or its id',
        ),
        (
            {"images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "a.png"}]},
            "images[1]: .* is there twice",
        ),
        ({"categories": [*CATEGORIES, {"id": 4, "name": "cow"}]}, 'categories[3]: "cow" or its id 4 is there twice'),
        ({"categories": [*CATEGORIES, {"id": 5, "name": "cat"}]}, 'categories[3]: "cat" or its id 5 is there twice'),
        ({"categories": [*CATEGORIES, {"id": 5}]}, "categories[3] has no name"),
        ({"categories": [*CATEGORIES, 5]}, "categories[3] is 5, not an object"),
        ({"images": [{"id": 1, "file_name": "a.png", "width": -7}]}, "images[0].width does not fit"),
        ({"images": [{"id": 1, "file_name": "a.png", "width": 6}]}, "images[0] is 6 x None, its image 7 x 5"),
        ({"images": [{"id": 1, "file_name": ""}]}, "images[0].file_name does not fit"),
        ({"images": [{"id": 1, "file_name": "b.png"}]}, 'images[0].file_name: there is no file "b.png"'),
        ({"images": [{"id": 1, "file_name": "../a.png"}]}, '"../a.png" is outside of the data'),
        ({"images": [{"id": 1, "file_name": "/etc/hostname"}]}, '"/etc/hostname" is outside of the data'),
        ({"images": [{"id": 1, "file_name": "a.txt"}]}, 'a.txt" cannot be read: not an image'),
        ({"annotations": None}, 'has no list "annotations"'),
        ({"images": {}}, 'has no list "images"'),
        ({"annotations": [entry(id=3), entry(id=3)]}, "annotations[1].id 3 is there twice"),
        ({"annotations": []}, 'has no objects in the split "train"'),
    ],
)
def test_bad_sections_name_file_and_field(tmp_path, change, message):
    data = single(tmp_path, entry(), **change)
    write(tmp_path / "train" / "a.txt", "no image")
    with pytest.raises(DataError) as caught:
        boxes(data)
    words = message.split(".*")
    assert all(word in caught.value.message for word in words) and caught.value.hint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not valid json: EOF"),
        ('{"images": [', "is not valid json: EOF"),
        (b"\xff\xfe\x00", "is not valid json"),
        ("[" * 100_000, "is not valid json: recursion limit"),
        ("[]", 'has no list "categories"'),
        ("null", 'has no list "categories"'),
    ],
)
def test_a_file_that_is_no_coco_json(tmp_path, content, message):
    data = single(tmp_path, entry())
    write(tmp_path / "train" / "_annotations.coco.json", content)
    with pytest.raises(DataError, match=rf'_annotations.coco.json" {message}'):
        boxes(data)


def test_a_byte_order_mark_is_no_matter(tmp_path):
    data = single(tmp_path, entry())
    file = tmp_path / "train" / "_annotations.coco.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(boxes(data)) == 1


def test_an_image_that_is_shown_turned_has_the_size_it_is_shown_in(tmp_path):
    data = single(tmp_path, entry(), names=["a.jpg"])
    image = Image.new("RGB", (5, 7))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "train" / "a.jpg", exif=exif)
    assert boxes(data)[0].image.size == (7, 5)
    exif[0x0112] = 1
    image.save(tmp_path / "train" / "a.jpg", exif=exif)
    with pytest.raises(DataError, match=r"images\[0\] is 7 x 5, its image 5 x 7") as caught:
        boxes(data)
    assert "upright" in caught.value.hint


def test_more_classes_than_a_mask_has_values(tmp_path):
    many = [{"id": i, "name": str(i)} for i in range(300)]
    data = single(tmp_path, *(entry(category=i) for i in range(300)), categories=many)
    assert len(boxes(data).classes) == 300
    with pytest.raises(DataError, match="301 classes, and masks hold 255"):
        mask(data)


def test_a_file_is_parsed_once_until_it_changes(tmp_path, monkeypatch):
    parsed = []
    monkeypatch.setattr(coco_json, "from_json", lambda text: parsed.append(text) or json.loads(text))
    data = single(tmp_path, entry())
    for split in ("train", "test"):
        boxes(data, split), mask(data, split)
    assert len(parsed) == 3
    file = tmp_path / "train" / "_annotations.coco.json"
    write(file, document(entry(), entry(category=9)))
    os.utime(file, ns=(1, 1))
    assert len(boxes(data)[0].target["boxes"]) == 2 and len(parsed) == 4


# several tasks on one image set, and real data


def test_one_image_set_with_two_kinds_of_labels(tmp_path):
    for split in ("train", "val", "test"):
        picture(tmp_path / "data" / split / "a.png")
        write(tmp_path / "data" / split / "_annotations.coco.json", document(entry()))
    data = f"coco:{tmp_path / 'data'}"
    flags = {"--tasks": f"parts=seg@{data},objects=det@{data}", "--method": "lora", "--out": tmp_path / "run"}
    run = setup(load(None, Overrides(flags, [])), check_data=True)
    assert run.dataset("parts", "train")[0].name == run.dataset("objects", "train")[0].name == "a.png"
    assert run.dataset("parts", "train").classes == ("background", *run.dataset("objects", "train").classes)


@pytest.mark.shared_data
def test_parts_of_cars_as_boxes_and_as_masks(shared_data):
    data = f"coco:{shared_data}/carparts"
    found = {split: (boxes(data, split), mask(data, split)) for split in ("train", "val", "test")}
    assert {split: len(both[0]) for split, both in found.items()} == {"train": 360, "val": 40, "test": 100}
    counts = {split: both[0].manifest()["histogram"] for split, both in found.items()}
    assert sum(counts["train"].values()) + sum(counts["val"].values()) == 3073 and sum(counts["test"].values()) == 811
    for objects, parts in found.values():
        assert parts.classes == ("background", *objects.classes) and len(objects.classes) == 18
        for index in (0, len(parts) - 1):
            one, other = objects[index], parts[index]
            assert one.name == other.name and other.target["mask"].shape == one.image.size[::-1]
            shown = set(other.target["mask"].unique().tolist()) - {0}
            assert shown == {label + 1 for label in one.target["labels"].tolist()}


@pytest.mark.shared_data
def test_parts_of_cars_as_two_tasks_of_one_run(shared_data, tmp_path):
    data = f"coco:{shared_data}/carparts"
    flags = {"--tasks": f"parts=seg@{data},boxes=det@{data}", "--method": "lora", "--out": tmp_path / "run"}
    run = setup(load(None, Overrides(flags, [])), check_data=False)
    for name in run.tasks:
        run.meet(name)
        task, dataset = run.tasks[name], run.dataset(name, "train")
        transform = task.transform(run.backbone.image, train=True)
        images, targets = task.collate([transform(dataset[index]) for index in range(2)])
        loss = sum(task.loss(run.host.heads[name], run.host.predict(images, name), targets).values())
        assert torch.isfinite(loss)


def test_the_hash_knows_shapes_flags_and_images(tmp_path):
    other = [[1, 1, 5, 1, 5, 4]]  # half of the square, with the same box
    data = [entry(), entry(segmentation=other), entry(iscrowd=1)]
    found = [mask(single(tmp_path / str(number), one)).manifest() for number, one in enumerate(data)]
    assert len({manifest["sha256"] for manifest in found}) == 3
    assert found[0] | {"sha256": ""} == found[1] | {"sha256": ""}
    Image.new("RGB", (7, 5), (1, 2, 3)).save(tmp_path / "0/train/a.png", compress_level=0)
    assert mask(f"coco:{tmp_path}/0").manifest()["sha256"] != found[0]["sha256"]
    assert mask(f"coco:{tmp_path}/0", "test").manifest()["sha256"] == found[0]["sha256"]
