"""Mirrored images: classes that mean left and right change places, in labels of images and boxes and in masks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mtpeft.api import ImageConfig, Sample, UsageError
from mtpeft.plugins import create
from mtpeft_tasks.detection.task import Detection
from mtpeft_tasks.transforms import build, check_flip

CONFIG = ImageConfig((4, 6), (0.5,) * 3, (0.5,) * 3)
CLASSES = ("hood", "left_mirror", "right_mirror", "left_door", "right_door")
PAIRS = (("left_mirror", "right_mirror"), ("right_door", "left_door"))


def sample() -> Sample:
    """Red at the left, where there is a left mirror; a hood in the middle; a right door at the right."""
    image = Image.new("RGB", (6, 4))
    image.paste((255, 0, 0), (0, 0, 2, 4))
    mask = torch.tensor([[1, 1, 0, 0, 255, 4]] * 4, dtype=torch.uint8)
    boxes = torch.tensor([[0.0, 0, 2, 4], [2, 0, 4, 4], [5, 0, 6, 4]])
    target = {"boxes": boxes, "labels": torch.tensor([1, 0, 4]), "mask": mask, "label": 1, "classes": CLASSES}
    return Sample(image, target, "car")


def moved(seed: int, pairs=PAIRS, **settings):
    torch.manual_seed(seed)
    image, target = build(CONFIG, train=True, augment="none", flip=True, flip_pairs=pairs, **settings)(sample())
    return bool(image[0, 0, 0] < 0), target  # mirrored: the red is at the right


@given(st.integers(0, 1000))
def test_labels_follow_the_mirror(seed):
    mirrored, target = moved(seed)
    row = [3, 255, 0, 0, 2, 2] if mirrored else [1, 1, 0, 0, 255, 4]
    assert target["mask"].tolist() == [row] * 4 and target["mask"].dtype == torch.uint8
    assert target["labels"].tolist() == ([2, 0, 3] if mirrored else [1, 0, 4])
    assert target["boxes"][:, 0].tolist() == ([4, 2, 0] if mirrored else [0, 2, 5])
    assert target["label"].item() == (2 if mirrored else 1)


def test_both_ways_occur_and_without_pairs_labels_stay():
    assert {moved(seed)[0] for seed in range(10)} == {True, False}
    for seed in range(10):
        mirrored, target = moved(seed, pairs=())
        assert target["labels"].tolist() == [1, 0, 4] and (target["mask"][0, 0] == 4) == mirrored


def test_evaluation_mirrors_nothing():
    transform = build(CONFIG, train=False, flip=True, flip_pairs=PAIRS)
    for seed in range(5):
        torch.manual_seed(seed)
        assert transform(sample())[1]["labels"].tolist() == [1, 0, 4]


def test_a_sample_without_targets_is_mirrored_too():
    transform = build(CONFIG, train=True, augment="none", flip=True, flip_pairs=PAIRS)
    assert set(transform(Sample(sample().image, {}, "car"))[1]) == {"size"}


def test_more_classes_than_bytes():
    torch.manual_seed(0)
    classes = tuple(map(str, range(400)))
    target = {"boxes": torch.tensor([[0.0, 0, 2, 4]]), "labels": torch.tensor([399]), "classes": classes}
    transform = build(CONFIG, train=True, augment="none", flip=True, flip_pairs=(("399", "300"),))
    found = {transform(Sample(sample().image, target, "car"))[1]["labels"].item() for _ in range(10)}
    assert found == {399, 300}


@pytest.mark.parametrize(
    ("pairs", "message", "hint"),
    [
        ([("left_miror", "right_mirror")], 'no class "left_miror"', 'did you mean "left_mirror"?'),
        ([*PAIRS, ("hood", "left_door")], '"left_door" is there twice', "one pair at most"),
        ([("hood", "hood")], '"hood" is there twice', "one pair at most"),
        ([PAIRS[0]], '"left_door" would not become "right_door"', '[["left_mirror", "right_mirror"], ["left_door", "r'),
        ([], '"left_mirror" would not become "right_mirror"', "leave flip off"),
    ],
)
def test_what_mirroring_would_make_false_is_refused(pairs, message, hint):
    with pytest.raises(UsageError, match=message) as caught:
        check_flip(CLASSES, pairs)
    assert hint in caught.value.hint


@pytest.mark.parametrize("classes", [CLASSES[:2], ("leftover", "rightover!"), ("Left door", "left door", "hood")])
def test_a_side_without_its_other_is_no_pair(classes):
    check_flip(classes, ())


def test_the_setting_reaches_the_transform_and_is_checked_with_the_data(tmp_path):
    settings = {"flip": True, "flip_pairs": [["0", "1"], ["6", "9"]]}
    task = create("tasks", "det", settings, where="tasks.det")
    assert isinstance(task, Detection) and task.flip_pairs == (("0", "1"), ("6", "9"))
    assert task.dataset("train").classes == tuple("0123456789")
    assert task.transform(CONFIG, train=True).transform.flip_pairs == task.flip_pairs
    with pytest.raises(UsageError, match='no class "cat"'):
        create("tasks", "det", {"flip": True, "flip_pairs": [["0", "cat"]]}, where="tasks.det").dataset("train")
    with pytest.raises(UsageError, match="flip_pairs"):
        create("tasks", "det", {"flip_pairs": [["0", "1", "2"]]}, where="tasks.det")
