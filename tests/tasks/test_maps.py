"""Maps move with the image and keep their values: mirrored normals turn, lines stay whole, what is missing stays so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mtpeft.api import ImageConfig, Sample
from mtpeft_tasks.maps import MAPS, Depth, Edges, Map, Normals
from mtpeft_tasks.transforms import build

CONFIG = ImageConfig((48, 48), (0.5,) * 3, (0.5,) * 3, "bilinear")


def scene(width: int = 80, height: int = 60) -> Sample:
    """Depth 3 in a rectangle with a hole in it, 7 around; normals to the right in it; its outline; and the image."""
    inside = np.zeros((height, width), bool)
    inside[10:40, 20:50] = True
    depth = np.where(inside, 3.0, 7.0).astype(np.float32)
    depth[20:30, 30:40] = 0
    normals = np.zeros((3, height, width), np.float32)
    normals[0, inside], normals[2, ~inside] = 1, 1
    edges = inside & ~(np.pad(inside, 1)[2:, 1:-1] & np.pad(inside, 1)[:-2, 1:-1])
    saliency = inside.astype(np.uint8)
    saliency[:5] = 255
    maps = {"depth": depth, "normals": normals, "edges": edges.astype(np.uint8), "saliency": saliency}
    target = {name: torch.from_numpy(values) for name, values in maps.items()}
    return Sample(Image.fromarray(inside).convert("RGB"), target, "scene")


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    preset=st.sampled_from(["none", "light", "standard"]),
    fit=st.sampled_from(["stretch", "pad"]),
    flip=st.booleans(),
)
def test_maps_move_together_and_mix_no_values(seed, preset, fit, flip):
    torch.manual_seed(seed)
    _, target = build(CONFIG, train=True, augment=preset, fit=fit, flip=flip)(scene())
    assert target["depth"].shape == (48, 48) and target["normals"].shape == (3, 48, 48)
    assert set(target["depth"].unique().tolist()) <= {0.0, 3.0, 7.0}
    assert set(target["edges"].unique().tolist()) <= {0, 1, 255}
    inside = target["saliency"] == 1
    assert (target["depth"][inside] != 7).all() and (target["depth"] == 3)[~inside].sum() == 0
    assert (target["normals"][0].abs() == 1).equal(inside)
    assert all(type(values) is torch.Tensor for name, values in target.items() if name in MAPS)


@pytest.mark.parametrize("seed", range(4))
def test_a_mirrored_image_turns_the_first_component_of_its_normals(seed):
    torch.manual_seed(seed)
    sample = scene()
    image, target = build(CONFIG, train=True, augment="none", flip=True)(sample)
    torch.manual_seed(seed)
    mirrored = bool(torch.rand(()) < 0.5)
    grey = (image.mean(0) > 0).flip(-1) if mirrored else image.mean(0) > 0
    assert grey[8:32, 12:30].float().mean() > 0.95
    assert set(target["normals"][0].unique().tolist()) - {0.0} == {-1.0 if mirrored else 1.0}
    assert set(target["normals"][2].unique().tolist()) == {0.0, 1.0}


def test_mirroring_twice_gives_the_same_again():
    normals = Normals(torch.randn(3, 5, 7))
    assert torch.equal(normals.mirrored().mirrored(), normals) and isinstance(normals.mirrored(), Normals)
    assert torch.equal(normals.mirrored()[:, :, 0], torch.tensor([-1.0, 1, 1])[:, None] * normals[:, :, -1])


def test_padding_is_what_stands_for_no_value():
    _, target = build(CONFIG, train=True, augment="none", fit="pad")(scene(80, 40))
    below = {name: target[name][..., 24:, :] for name in MAPS if name in target}
    assert not below["depth"].any() and not below["normals"].any()
    assert (below["edges"] == 255).all() and (below["saliency"] == 255).all()
    assert target["depth"][:24].max() == 7


def test_evaluation_keeps_maps_as_they_are():
    sample = scene()
    _, target = build(CONFIG, train=False)(sample)
    assert all(torch.equal(target[name], sample.target[name]) for name in sample.target)


def test_a_line_stays_unbroken_where_the_image_shrinks():
    lines = torch.zeros(60, 80, dtype=torch.uint8)
    lines[:, 37], lines[50:] = 1, 255
    small = Edges(lines).resized(15, 16)
    assert small.dtype == torch.uint8 and (small[:12, 7] == 1).all() and (small[13:] == 255).all()
    assert (small == 1).sum() == 13  # of a row that is half void, what is known of it stands
    larger = Edges(lines).resized(120, 160)
    assert torch.equal(larger[::2, ::2], lines)


def test_which_pixels_say_something():
    assert Map.labelled(torch.tensor([[[0, 1, 255]]])).tolist() == [[True, True, False]]
    depth = torch.tensor([[[1.5, 0, float("nan"), float("inf"), -1]]])
    assert Depth.labelled(depth).tolist() == [[True, False, False, False, False]]
    normals = torch.tensor([[0.0, 0, 1], [0, 0, float("nan")], [1, 0, 0]])[:, None]
    assert Normals.labelled(normals).tolist() == [[True, False, False]]
