"""The embedded digits: deterministic, split by source image, tight boxes, masks that agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtpeft.api import UsageError
from mtpeft_tasks import digits
from mtpeft_tasks.digits import SCENES, SPLITS, Digits, source_split, sources


@pytest.mark.parametrize("seed", [0, 7])
def test_splits_share_no_source_and_use_all(seed):
    split = source_split(seed)
    assert {name: len(members) for name, members in split.items()} == {"train": 1197, "val": 200, "test": 400}
    assert np.array_equal(np.sort(np.concatenate(list(split.values()))), np.arange(1797))


def test_splits_are_stratified():
    labels = sources()[1]
    for members in source_split(0).values():
        expected = np.bincount(labels) * len(members) / len(labels)
        assert np.abs(np.bincount(labels[members], minlength=10) - expected).max() <= 1.5


@pytest.mark.parametrize("kind", ["cls", "det"])
@pytest.mark.parametrize("split", SPLITS)
def test_scenes_use_only_sources_of_their_split(kind, split):
    used = {source for index in range(60) for source in Digits(kind, split).scene(index).sources}
    assert used <= set(source_split(0)[split].tolist())


@settings(max_examples=40, deadline=None)
@given(index=st.integers(0, 1199), seed=st.integers(0, 2))
def test_boxes_are_tight_around_the_ink(index, seed):
    scene = Digits("det", "train", seed=seed).scene(index)
    assert 1 <= len(scene.labels) <= 5
    for box, label, source in zip(scene.boxes.astype(int), scene.labels, scene.sources, strict=True):
        left, top, right, bottom = box
        assert 0 <= left < right <= 64 and 0 <= top < bottom <= 64
        assert label == sources()[1][source]
    if len(scene.labels) == 1:
        rows, columns = np.nonzero(scene.mask)
        assert scene.boxes[0].tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@settings(max_examples=40, deadline=None)
@given(index=st.integers(0, 1199))
def test_boxes_overlap_by_a_sliver_at_most(index):
    boxes = Digits("det", "train").scene(index).boxes.tolist()
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
    assert all(digits._covered(a, b) <= 0.05 for a, b in pairs)


def test_detection_and_segmentation_show_the_same_scenes():
    for index in range(20):
        boxes, mask = Digits("det", "val")[index], Digits("seg", "val")[index]
        assert np.array_equal(boxes.image, mask.image)
        shown = {mask.target["classes"][value] for value in mask.target["mask"].unique().tolist()}
        assert shown == {"background", *(boxes.target["classes"][label] for label in boxes.target["labels"])}


def test_a_scene_is_legible():
    """Ink and background differ: by luminance, on the average, in every scene of one digit."""
    for index in range(100):
        scene = Digits("cls", "train").scene(index)
        grey = scene.image @ digits._LUMINANCE
        assert abs(grey[scene.mask > 0].mean() - grey[scene.mask == 0].mean()) > 35


def test_sizes_and_places_vary():
    boxes = np.array([Digits("cls", "train").scene(index).boxes[0] for index in range(200)])
    heights = boxes[:, 3] - boxes[:, 1]
    assert heights.min() >= 12 and heights.max() <= 42 and heights.std() > 4
    assert boxes[:, 0].std() > 8 and boxes[:, 1].std() > 5


def test_scenes_are_made_again_alike_whatever_was_drawn_before():
    first = [Digits("det", "test", seed=3)[index].image.tobytes() for index in range(5)]
    for cache in (digits._scene, digits._candidates, digits.source_split):
        cache.cache_clear()
    np.random.seed(5), torch.manual_seed(5)
    Digits("det", "test", seed=4)[2]
    again = [Digits("det", "test", seed=3)[index].image.tobytes() for index in reversed(range(5))]
    assert first == again[::-1]


def test_seeds_and_indices_differ():
    one, same, other = (Digits("cls", "train", seed=seed)[3].image.tobytes() for seed in (0, 0, 1))
    assert one == same != other
    assert one != Digits("cls", "train")[4].image.tobytes()


@pytest.mark.parametrize("kind", ["cls", "det", "seg"])
def test_manifest_counts_what_is_shown(kind):
    data = Digits(kind, "val")
    manifest = data.manifest()
    assert manifest["count"] == len(data) == SCENES[kind]["val"]
    assert sum(manifest["histogram"].values()) == sum(len(data.scene(index).labels) for index in range(len(data)))
    assert manifest["sha256"] == Digits(kind, "val").manifest()["sha256"]
    assert manifest["sha256"] != Digits(kind, "val", seed=1).manifest()["sha256"]


@pytest.mark.parametrize("kind", ["cls", "det", "seg"])
def test_classes_can_be_kept_apart(kind):
    data = Digits(kind, "train", classes=("7", "2"))
    assert data.classes == (("background", "2", "7") if kind == "seg" else ("2", "7"))
    for index in range(20):
        assert set(data.scene(index).labels.tolist()) <= {2, 7}
        target, names = data[index].target, set()
        if kind == "cls":
            names = {data.classes[target["label"]]}
        elif kind == "det":
            names = {data.classes[label] for label in target["labels"]}
        else:
            names = {data.classes[value] for value in target["mask"].unique()} - {"background"}
        assert {int(name) for name in names} == set(data.scene(index).labels.tolist())


def test_unknown_split_and_class():
    with pytest.raises(UsageError, match='no split "trian"') as caught:
        Digits("cls", "trian")
    assert 'did you mean "train"' in caught.value.hint
    with pytest.raises(UsageError, match='no class "11"'):
        Digits("cls", "train", classes=("11",))


def test_an_index_beyond_the_end():
    with pytest.raises(IndexError):
        Digits("cls", "val")[400]
