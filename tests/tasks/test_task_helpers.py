"""Registration without torch, drawing, names."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image

import mtpeft_tasks
from mtpeft.api import DataError, UsageError
from mtpeft.plugins import registry, resolve
from mtpeft.settings import build
from mtpeft_tasks import drawing
from mtpeft_tasks.names import grown, known_positions, positions, unseen


def test_registration_imports_no_torch():
    code = "import sys, mtpeft_tasks as t; t.register_tasks(), t.register_readers(); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "reference", [*mtpeft_tasks.register_tasks().values(), *mtpeft_tasks.register_readers().values()]
)
def test_registered_names_exist(reference):
    module, _, name = reference.partition(":")
    assert callable(getattr(import_module(module), name))


@pytest.mark.parametrize("name", registry("tasks"))
@pytest.mark.parametrize(("setting", "value"), [("batch_size", 0), ("samples", -1), ("loss_weight", -0.5)])
def test_numbers_out_of_range_are_refused(name, setting, value):
    with pytest.raises(UsageError, match=f"tasks.a.{setting} = {value} does not fit"):
        build(resolve("tasks", name), {setting: value}, "tasks.a")


def test_positions():
    assert positions(("b", "x", "a"), ("a", "b")).tolist() == [1, -1, 0]
    with pytest.raises(DataError, match='class "x"'):
        known_positions(("b", "x"), ("a", "b"))
    assert unseen(("b", "c", "c"), ("a", "b")) == ("c",)


def test_grown_keeps_what_was():
    old = torch.randn(2, 3)
    assert torch.equal(grown(old, 2, 0.1)[:2], old) and not grown(old, 2)[2:].any()


def test_colours_of_neighbours_differ():
    colours = {drawing.colour(index) for index in range(20)}
    assert len(colours) == 20 and drawing.colour(3) == drawing.colour(3)


def test_boxes_are_drawn_where_they_are():
    image = Image.new("RGB", (64, 64))
    found = {
        "boxes": torch.tensor([[16.0, 32.0, 48.0, 60.0]]),
        "labels": torch.tensor([1]),
        "scores": torch.tensor([0.5]),
    }
    drawn = np.asarray(drawing.boxes(image, found, ("a", "b")))
    assert drawn.shape == (256, 256, 3)
    assert tuple(drawn[200, 64]) == drawing.colour(1) and not drawn[100:110].any()
    assert np.asarray(image).max() == 0


def test_a_target_without_scores_is_drawn():
    found = {"boxes": torch.tensor([[1.0, 2.0, 9.0, 9.0]]), "labels": torch.tensor([0])}
    assert np.asarray(drawing.boxes(Image.new("RGB", (300, 20)), found, ("a",))).any()


def test_masks_are_tinted_but_not_the_background():
    mask = np.zeros((256, 256), np.uint8)
    mask[128:] = 1
    drawn = np.asarray(drawing.mask(Image.new("RGB", (256, 256)), mask, ("background", "a"), plain=[0]))
    assert np.allclose(drawn[200, 200], np.array(drawing.colour(1)) / 2, atol=1) and not drawn[100, 200].any()


def test_a_caption_is_written():
    assert np.asarray(drawing.caption(Image.new("RGB", (64, 64)), "cat 99%"))[:20].any()
