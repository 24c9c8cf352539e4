"""Polygons and run lengths: goldens by hand, and COCO's own encoder for random masks."""

from __future__ import annotations

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mtpeft_tasks.readers.shapes import decoded, pixels, polygons, runs

RECTANGLE = [11, 2, 3, 2, 3, 2, 12]  # rows 1 and 2 of columns 2 to 4, in 5 x 7 pixels
RECTANGLE_TEXT = ";230009"


def rectangle(rows: slice, columns: slice, size=(5, 7)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[rows, columns] = True
    return mask


def test_run_lengths_go_down_the_columns():
    for counts in (RECTANGLE, RECTANGLE_TEXT):
        shape = runs(counts, [5, 7])
        assert shape.counts.tolist() == RECTANGLE
        assert (shape.mask((5, 7)) == rectangle(slice(1, 3), slice(2, 5))).all()
        assert shape.extent() == (2, 1, 5, 3)


def test_compressed_numbers_of_several_characters_and_signs():
    # 8 + 32 | 20 + 0 * 32 | 22 + 4 * 32 | 20 + (22 - 32) | 150 + (26 + 29 * 32 - 1024)
    assert decoded(b"X1d0f4FjM").tolist() == [40, 20, 150, 10, 80]


@given(arrays(bool, st.tuples(st.integers(1, 70), st.integers(1, 40))))
def test_run_lengths_are_cocos(mask):
    text = coco.encode(np.asfortranarray(mask, np.uint8))["counts"]
    assert (pixels(decoded(text), mask.shape) == mask).all()
    assert (runs(text.decode(), list(mask.shape)).mask(mask.shape) == mask).all()


@given(st.binary(max_size=30))
def test_any_text_is_decoded_or_refused(text):
    try:
        values = decoded(text)
    except ValueError:
        return
    assert len(values) == sum(not (code - 48) & 32 for code in text)


@pytest.mark.parametrize(
    ("counts", "size", "message"),
    [
        ([1, 2], [5, 7], "do not add up to the 5 x 7 pixels"),
        ([40, -5], [5, 7], "do not add up"),
        ([2**31, 2**31, 35], [5, 7], "do not add up"),
        ("9999999", [5, 7], "do not add up"),
        ("", [5, 7], "no compressed run lengths"),
        ("o", [5, 7], "no compressed run lengths"),
        ("o" * 30 + "0", [5, 7], "no compressed run lengths"),
        ("1é0", [5, 7], "counts"),
        ([1.5, 33.5], [5, 7], "neither a text nor a list of whole numbers"),
        ([2**80], [5, 7], "neither a text nor a list"),
        (None, [5, 7], "neither a text nor a list"),
        ([35], [5], "size .* is not .height, width"),
        ([35], [5, -7], "size"),
        ([35], [5, 2**70], "size"),
        ([35], [5.0, 7], "size"),
        ([35], None, "size None"),
    ],
)
def test_run_lengths_that_cannot_be(counts, size, message):
    with pytest.raises(ValueError, match=message):
        runs(counts, size)


def test_a_polygon_covers_the_pixels_between_its_edges():
    shape = polygons([[1, 1, 5, 1, 5, 4, 1, 4]])
    assert (shape.mask((5, 7)) == rectangle(slice(1, 4), slice(1, 5))).all()
    assert shape.extent() == (1, 1, 5, 4)


def test_polygons_are_a_union_and_each_is_even_odd_inside():
    apart = polygons([[0, 0, 2, 0, 2, 2, 0, 2], [4, 3, 6, 3, 6, 5, 4, 5], [1, 1]])
    expected = rectangle(slice(0, 2), slice(0, 2)) | rectangle(slice(3, 5), slice(4, 6))
    assert (apart.mask((5, 7)) == expected).all() and apart.extent() == (0, 0, 6, 5)
    ring = polygons([[0, 0, 6, 0, 6, 5, 0, 5, 0, 0, 1, 1, 5, 1, 5, 4, 1, 4, 1, 1]])
    hole = rectangle(slice(0, 5), slice(0, 6)) & ~rectangle(slice(1, 4), slice(1, 5))
    assert (ring.mask((5, 7)) == hole).all()


def test_what_is_outside_is_left_out_however_far():
    for far in (9, 1e4, 4e9):
        assert (polygons([[3, 2, far, 2, far, far, 3, far]]).mask((5, 7))[:, :3] == 0).all()
    inside = polygons([[-1e9, -1e9, 1e9, -1e9, 1e9, 1e9, -1e9, 1e9]]).mask((5, 7))
    assert inside.all()


def test_fewer_than_three_points_have_no_area():
    shape = polygons([[2, 3, 6, 4]])
    assert shape.extent() == (2, 3, 2, 3) and not shape.mask((5, 7)).any()


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ([[1, 1, 5, 1, 5, 4], [1, 2, 3]], "polygon 1 has 3 numbers, not pairs"),
        ([[]], "polygon 0 has 0 numbers"),
        ([1, 1, 5, 1, 5, 4], "polygon 0 is no list of numbers"),
        ([[1, 1, 5, 1, "5", 4]], "polygon 0 is no list of numbers"),
        ([[1, 1, 5, 1, True, 4]], "polygon 0 is no list of numbers"),
        ([[1, 1, 5, 1, float("nan"), 4]], "polygon 0 has a coordinate that is not finite"),
        ([[1, 1, 5, 1, float("inf"), 4]], "not finite"),
        ([[1, 1, 5, 1, 10**400, 4]], "not finite"),
    ],
)
def test_polygons_that_cannot_be(lists, message):
    with pytest.raises(ValueError, match=message):
        polygons(lists)
