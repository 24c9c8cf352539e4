"""Tasks that label the same images: read once, augmented once, each with its own target."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.samples import make_coco
from support.training_toy import Colours, Noise

from mtpeft.backbone.features import ImageConfig
from mtpeft.data.combined_datasets import Chosen, JoinedSplits
from mtpeft.data.loading import Samples, Source, batches
from mtpeft.data.opened import OpenedData
from mtpeft.data.shared_images import SharedImages, check_apart, together
from mtpeft.errors import DataError
from mtpeft.plugins import create
from mtpeft_tasks.readers import files

IMAGE = ImageConfig((32, 32), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
EVERYTHING = {"area": [0.3, 0.6], "aspect": 1.3, "colour": [0.3, 0.3, 0.0, 0.0], "visible": 0.0}


def digits(**more) -> SharedImages:
    given = {"augment": EVERYTHING, "flip": True} | more
    tasks = {name: create("tasks", name, given, name) for name in ("det", "seg", "saliency")}
    return SharedImages(tasks, {name: task.dataset("train") for name, task in tasks.items()})


def noise(**counts: int) -> SharedImages:
    tasks = {name: Colours(count=count) for name, count in counts.items()}
    return SharedImages(tasks, {name: task.dataset("train") for name, task in tasks.items()})


def test_one_augmentation_moves_all_targets():
    samples = Samples({"s": digits()}, IMAGE, 0, train=True)
    moved = 0
    for index in range(12):
        _, target = samples.one("s", index, 1)
        assert torch.equal(target["seg"]["mask"] > 0, target["saliency"]["saliency"].squeeze() > 0)
        covered = torch.zeros(32, 32, dtype=torch.bool)
        for left, top, right, bottom in target["det"]["boxes"].round().long().tolist():
            covered[max(top - 1, 0) : bottom + 1, max(left - 1, 0) : right + 1] = True
        assert covered[target["seg"]["mask"] > 0].all()
        moved += target["det"]["boxes"].numel()
    assert moved


def test_each_target_is_what_its_task_makes_of_the_same_draws():
    shared = digits()
    together_, alone = Samples({"s": shared}, IMAGE, 3, train=True), shared.tasks
    image, target = together_.one("s", 5, 2)
    for name, task in alone.items():
        own = Samples({"s": Source(task, shared.datasets[name])}, IMAGE, 3, train=True).one("s", 5, 2)
        assert torch.equal(own[0], image) and str(own[1]) == str(target[name])


@given(st.lists(st.sets(st.integers(0, 9), min_size=1), min_size=2, max_size=3))
def test_every_image_is_there_once_with_all_its_tasks(chosen):
    whole = Noise("train", 10, ("red", "green"), 0)
    names = "abc"[: len(chosen)]
    sets = {name: Chosen(whole, sorted(own)) for name, own in zip(names, chosen, strict=True)}
    tasks = {name: Colours() for name in names}
    if all(sum(i in own for own in chosen) < 2 for i in range(10)):
        with pytest.raises(DataError, match="no image in common"):
            SharedImages(tasks, sets)
        return
    shared = SharedImages(tasks, sets)
    found = [{(name, sets[name].indices[own]) for name, own in sample.items()} for sample in shared.samples]
    assert len(found) == len(set().union(*chosen)) and all(len({i for _, i in sample}) == 1 for sample in found)
    assert set().union(*found) == {(name, i) for name, own in zip(names, chosen, strict=True) for i in own}


def test_workers_change_nothing():
    shared, keys = noise(a=12, b=6), [[("s", 3, 0), ("s", 9, 0)], [("s", 1, 1)]]

    def load(workers: int) -> list:
        return list(batches(Samples({"s": shared}, IMAGE, 0, train=True), keys, workers=workers))

    for one, other in zip(load(0), load(2), strict=True):
        assert torch.equal(one["s"][0], other["s"][0]) and str(one["s"][1]) == str(other["s"][1])
    assert [list(target) for target in load(0)[0]["s"][1]] == [["a", "b"], ["a"]]
    assert pickle.loads(pickle.dumps(shared)).samples == shared.samples


@pytest.mark.parametrize("split", [True, False])
def test_tasks_that_prepare_an_image_differently_are_refused(split):
    det, seg = (create("tasks", name, {"fit": fit}, name) for name, fit in (("det", "stretch"), ("seg", "pad")))
    shared = SharedImages({"det": det, "seg": seg}, {"det": det.dataset("train"), "seg": seg.dataset("train")})
    image = ImageConfig((32, 48), (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(DataError, match="as different images") as caught:
        shared.prepared(image, train=split)(0)
    assert "augment, flip and fit" in caught.value.hint


def test_an_image_twice_in_a_task_is_refused():
    whole = Noise("train", 4, ("red", "green"), 0)
    with pytest.raises(DataError, match='"a" has the image "train 1" twice'):
        SharedImages({"a": Colours(), "b": Colours()}, {"a": Chosen(whole, [0, 1, 1]), "b": whole})


def test_an_image_that_one_task_trains_on_is_no_test_of_another():
    whole = Noise("train", 6, ("red", "green"), 0)
    train = {"a": Chosen(whole, [0, 1, 2]), "b": Chosen(whole, [0, 1])}
    check_apart("test", train, {"a": Chosen(whole, [3]), "b": Chosen(whole, [3, 4])})
    check_apart("val", train, {"a": Chosen(whole, [2]), "b": Chosen(whole, [1])})  # a protocol may have it so
    with pytest.raises(DataError, match='image "train 2" is in the training data of "a" and in the test data of "b"'):
        check_apart("test", train, {"b": Chosen(whole, [2])})


def test_tasks_of_one_name_are_together():
    tasks = {"a": Colours(images="x"), "b": Colours(), "c": Colours(images="x"), "d": Colours(images="y")}
    assert together(tasks, "abcd") == {"images:x": ("a", "c"), "b": ("b",), "d": ("d",)}
    assert together(tasks, "ab") == {"a": ("a",), "b": ("b",)}


@pytest.fixture
def coco(tmp_path) -> str:
    make_coco(tmp_path / "data", [f"image{number}" for number in range(12)])
    return f"coco:{tmp_path / 'data'}"


@pytest.mark.parametrize("cached", [False, True])
def test_one_folder_for_boxes_and_pixels_is_decoded_once(coco, tmp_path, monkeypatch, cached):
    tasks = {name: create("tasks", name, {"data": coco, "degenerate": "allow"}, name) for name in ("det", "seg")}
    data = OpenedData(tasks, {"det": "det", "seg": "seg"}, cache=str(tmp_path / "cache") if cached else None)
    decoded, decode = [], files.decode
    monkeypatch.setattr(files, "decode", lambda path: decoded.append(path) or decode(path))
    files._read_image.cache_clear()
    shared = data.source(("det", "seg"), "train")
    assert all(list(sample) == ["det", "seg"] for sample in shared.samples) and not decoded
    samples = Samples({"s": shared}, IMAGE, 0, train=True)
    first = [samples.one("s", index, 0) for index in range(len(shared))]
    assert len(decoded) == len(set(decoded)) == len(shared)
    again = [samples.one("s", index, 0) for index in range(len(shared))]
    assert len(decoded) == len(shared) * (1 if cached else 2)
    assert str(first) == str(again)


def test_an_image_that_was_replaced_is_read_again(tmp_path):
    from PIL import Image

    path = tmp_path / "x.png"
    Image.new("RGB", (4, 4), "red").save(path)
    assert files.read_image(path).getpixel((0, 0)) == (255, 0, 0)
    Image.new("RGB", (5, 4), "blue").save(path)
    assert files.read_image(path).getpixel((0, 0)) == (0, 0, 255)


def test_data_made_of_others_knows_its_images():
    whole = Noise("train", 4, ("red", "green"), 0)
    joined = JoinedSplits([Chosen(whole, [3, 1]), whole])
    assert [joined.origin(index) for index in range(6)] == [f"train {i}" for i in (3, 1, 0, 1, 2, 3)]
