"""Counts and copies, told from plain values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mtpeft.data.label_checks import Allowed, label_errors, label_warnings, listed, unlearned
from mtpeft.inspection.duplicates import BITS, Twins, find_twins, fingerprint
from mtpeft.inspection.survey import size_statistics

FULL = {"train": {"cat": 3, "dog": 1}, "val": {"cat": 1, "dog": 0}, "test": {"cat": 0, "dog": 2}}


def scene(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """A picture of large shapes, as unlike another seed's as two photographs."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (9, 12, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def twins(**splits: dict[str, Image.Image]) -> dict[tuple[str, str], Twins]:
    prints = {split: [fingerprint(name, image) for name, image in images.items()] for split, images in splits.items()}
    return {(found.of, found.also): found for found in find_twins(prints)}


def test_sound_counts_are_no_errors():
    assert list(label_errors("task", FULL)) == [] and unlearned(FULL) == {}


def test_a_split_without_labels_is_an_error():
    (error,) = label_errors('task "pets"', {**FULL, "val": {"cat": 0, "dog": 0}})
    assert error.message == 'task "pets" has no labels in the split val' and "mtpeft data" in error.hint
    assert [error.message for error in label_errors("it", {"train": {}})] == ["it has no labels in the split train"]


def test_classes_that_training_never_shows_are_an_error_unless_allowed():
    counts = {"train": {"cat": 3, "emu": 0}, "test": {"cat": 1, "emu": 2}}
    (error,) = label_errors("it", counts)
    assert error.message == 'it shows "emu" in the split test, but never in train'
    assert 'missing_classes = "allow"' in error.hint
    assert list(label_errors("it", counts, Allowed(missing=True))) == []
    assert unlearned({"train": {"a": 0}, "test": {"a": 1}}) == {}


def test_a_class_that_no_sample_shows_is_an_error_unless_allowed():
    counts = {"train": {"cat": 3, "emu": 0}, "test": {"cat": 1, "emu": 0}}
    (error,) = label_errors("it", counts)
    assert error.message == 'it names "emu", which no sample of any split shows' and "degenerate" in error.hint
    assert list(label_errors("it", counts, Allowed(degenerate=True))) == []
    (warning,) = label_warnings("it", counts)
    assert warning == 'it has outputs for "emu", which no sample shows: its scores leave them out'


def test_a_choice_needs_two_classes_unless_allowed():
    counts = {"train": {"cat": 3}, "test": {"cat": 1}}
    assert list(label_errors("it", counts, Allowed(fewest=1))) == [] == list(label_warnings("it", counts, Allowed(1)))
    (error,) = label_errors("it", counts, Allowed(fewest=2))
    assert error.message == 'it shows one class only, "cat": every answer would be right'
    for allowed in (Allowed(fewest=2, degenerate=True), Allowed(fewest=2, grows=True)):
        assert list(label_errors("it", counts, allowed)) == []
        (warning,) = label_warnings("it", counts, allowed)
        assert 'trains one class, "cat"' in warning and "means nothing" in warning


COUNTS = st.dictionaries(st.sampled_from("abc"), st.integers(0, 2))


@given(
    st.dictionaries(st.sampled_from(["train", "val", "test"]), COUNTS),
    st.builds(Allowed, st.integers(1, 2), st.booleans(), st.booleans(), st.booleans()),
)
def test_what_is_allowed_is_never_more_strict(counts, allowed):
    strict = {error.message for error in label_errors("it", counts, Allowed(fewest=2))}
    assert {error.message for error in label_errors("it", counts, allowed)} <= strict


def test_names_are_listed_and_cut():
    assert listed(["a"]) == '"a"' and listed(list("abcdefg"), most=3) == '"a", "b", "c" and 4 more'


def test_sizes_are_least_median_most():
    found = size_statistics([(10, 20), (40, 20), (30, 20)])
    assert found == {"width": [10, 30, 40], "height": [20, 20, 20], "aspect": [0.5, 1.5, 2.0]}
    assert size_statistics([]) == {}


def test_copies_across_and_within_splits():
    found = twins(
        train={"a": scene(1), "b": scene(2), "again": scene(1)},
        test={"c": scene(1), "d": scene(3), "e": scene(1)},
    )
    assert found[("train", "train")].exact == [("again", "a")]
    assert found[("test", "train")].exact == [("c", "a"), ("e", "a")]
    assert found[("test", "test")].exact == [("e", "c")]
    assert all(pair.near == [] for pair in found.values())


def jpeg(image: Image.Image, tmp_path) -> Image.Image:
    image.save(tmp_path / "x.jpg", quality=50)
    return Image.open(tmp_path / "x.jpg").convert("RGB")


@pytest.mark.parametrize("seed", range(5))
def test_near_copies_are_compressed_resized_or_brighter(seed, tmp_path):
    image = scene(seed)
    changed = {
        "compressed": jpeg(image, tmp_path),
        "smaller": image.resize((100, 75)),
        "brighter": image.point(lambda value: min(255, value + 2)),
    }
    found = twins(train={"a": image, "b": scene(seed + 50)}, test={**changed, "other": scene(seed + 100)})
    assert found[("test", "train")].near == [(name, "a") for name in changed] and found[("test", "train")].exact == []


def test_darker_by_far_is_another_picture():
    dark = scene(1).point(lambda value: value // 3)
    assert twins(train={"a": scene(1)}, test={"dark": dark}) == {}


def test_the_nearest_of_several_is_named():
    close = scene(1).point(lambda value: min(255, value + 3))
    closer = scene(1).point(lambda value: min(255, value + 1))
    found = twins(train={"close": close, "closer": closer}, test={"a": scene(1)})
    assert found[("test", "train")].near == [("a", "closer")]


@given(st.lists(st.integers(0, 6), max_size=12), st.lists(st.integers(0, 6), max_size=12))
def test_counts_of_exact_copies_are_those_of_sets(train: list[int], test: list[int]):
    found = twins(
        train={f"{n} {i}": scene(n, (32, 32)) for i, n in enumerate(train)},
        test={f"{n} {i}": scene(n, (32, 32)) for i, n in enumerate(test)},
    )

    def exact(of: str, also: str) -> int:
        return len(found[of, also].exact) if (of, also) in found else 0

    assert exact("train", "train") == len(train) - len(set(train))
    assert exact("test", "train") == sum(number in train for number in test)


def test_more_rows_than_are_compared_at_a_time(monkeypatch):
    monkeypatch.setattr("mtpeft.inspection.duplicates._ROWS", 2)
    images = {str(seed): scene(seed) for seed in range(5)}
    brighter = {f"{name} again": image.point(lambda value: min(255, value + 2)) for name, image in images.items()}
    found = twins(train={**images, **brighter})
    assert found[("train", "train")].near == [(f"{name} again", name) for name in images]


def test_unlike_pictures_differ_in_many_bits():
    prints = [fingerprint("", scene(seed)).thumbnail for seed in range(20)]
    bits = np.array([(small[:, 1:] > small[:, :-1]).ravel() for small in prints])
    distances = (bits[:, None] != bits[None]).sum(-1)[~np.eye(20, dtype=bool)]
    assert distances.min() > 3 * BITS
