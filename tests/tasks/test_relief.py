"""The embedded relief: distances in closed form, normals of a known slope, outlines; all maps of a scene agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtpeft_tasks import relief
from mtpeft_tasks.digits import Digits
from mtpeft_tasks.maps import NAMES


def stripe() -> np.ndarray:
    """Ink in columns 20 to 24 of 64."""
    ink = np.zeros((64, 64), bool)
    ink[:, 20:25] = True
    return ink


def test_height_is_the_distance_from_the_outline():
    row = relief.height(stripe())[30]
    assert row[20:25].tolist() == [0.5, 1.5, 2.5, 1.5, 0.5]
    assert row[15:20].tolist() == [-4.5, -3.5, -2.5, -1.5, -0.5] and row[40:].tolist() == [-8.0] * 24


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_height_against_every_distance_written_out(seed):
    ink = np.random.default_rng(seed).random((9, 7)) < 0.3
    if not ink.any() or ink.all():
        return
    places = [np.argwhere(ink), np.argwhere(~ink)]
    for y, x in np.ndindex(ink.shape):
        nearest = min(np.hypot(y - v, x - u) for v, u in places[int(ink[y, x])])
        expected = nearest - 0.5 if ink[y, x] else max(0.5 - nearest, relief.FOOT)
        assert relief.height(ink)[y, x] == pytest.approx(expected, abs=1e-5)


def test_depth_and_normals_follow_from_the_height():
    depth, normals = relief.target("depth", stripe()), relief.target("normals", stripe())
    assert depth[0, 22] == 2 - 2.5 / 4 and depth[0, 60] == 4 and depth.dtype == torch.float32
    slope = 2**-0.5
    assert torch.allclose(normals[:, 9, 17], torch.tensor([-slope, 0, slope]))  # rises to the right
    assert torch.allclose(normals[:, 9, 27], torch.tensor([slope, 0, slope]))
    assert torch.allclose(normals[:, 9, 60], torch.tensor([0.0, 0, 1]))
    assert torch.allclose(normals.norm(dim=0), torch.ones(64, 64))


def test_an_outline_is_the_rim_of_a_region_and_not_of_the_picture():
    region = np.zeros((5, 6), bool)
    region[0:3, 1:5] = True
    assert relief.outline(region).astype(int).tolist() == [
        [0, 1, 0, 0, 1, 0],
        [0, 1, 0, 0, 1, 0],
        [0, 1, 1, 1, 1, 0],
        [0] * 6,
        [0] * 6,
    ]


def test_the_maps_are_of_the_scenes_that_segmentation_shows():
    for index in range(10):
        ink = Digits("seg", "val")[index].target["mask"] > 0
        found = {kind: Digits(kind, "val")[index].target[kind] for kind in NAMES}
        assert torch.equal(found["saliency"] == 1, ink) and torch.equal(found["depth"] < 2, ink)
        assert (found["edges"] <= found["saliency"]).all() and found["edges"].any()
        assert found["normals"].shape == (3, 64, 64)


def test_classes_are_what_the_outputs_stand_for_and_digits_may_be_chosen():
    data = Digits("normals", "val", classes=("3",))
    assert data.classes == ("x", "y", "z") and set(data.scene(0).labels.tolist()) == {3}
