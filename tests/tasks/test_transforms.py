"""Transforms: boxes and masks move with the image, only torch's generator is drawn from, evaluation keeps sizes."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mtpeft.api import ImageConfig, Sample, UsageError
from mtpeft.settings import build as made
from mtpeft_tasks.classification.task import Classification
from mtpeft_tasks.transforms import boxes_to_size, build, content, to_rgb

CONFIG = ImageConfig((48, 48), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), "bilinear")
NAMES = ("a", "b")


def square(width=80, height=60, box=(20, 10, 50, 40)) -> Sample:
    """A white rectangle on black, with its box and its mask."""
    mask = np.zeros((height, width), np.uint8)
    mask[box[1] : box[3], box[0] : box[2]] = 1
    target = {
        "boxes": torch.tensor([box], dtype=torch.float32),
        "labels": torch.tensor([1]),
        "difficult": torch.tensor([False]),
        "mask": torch.from_numpy(mask),
        "classes": NAMES,
    }
    return Sample(Image.fromarray(mask * 255).convert("RGB"), target, "square")


def brightness(pixels):
    """Undo the normalisation."""
    return (pixels * torch.tensor(CONFIG.std).view(3, 1, 1) + torch.tensor(CONFIG.mean).view(3, 1, 1)).mean(0)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    preset=st.sampled_from(["none", "light", "standard"]),
    fit=st.sampled_from(["stretch", "pad"]),
    flip=st.booleans(),
)
def test_box_mask_and_image_move_together(seed, preset, fit, flip):
    torch.manual_seed(seed)
    image, target = build(CONFIG, train=True, augment=preset, fit=fit, flip=flip)(square())
    assert image.shape == (3, 48, 48) and target["mask"].shape == (48, 48) and target["size"] == (48, 48)
    assert set(target["mask"].unique().tolist()) <= {0, 1, 255}
    assert len(target["boxes"]) == len(target["labels"]) == len(target["difficult"])
    inside = target["mask"] == 1
    grey = brightness(image)
    if preset == "none":
        assert ((grey > 0.5) == inside)[target["mask"] != 255].float().mean() > 0.97
    else:
        assert grey[inside].mean() > grey[target["mask"] == 0].mean() + 0.3
    for box in target["boxes"]:
        rows, columns = inside.nonzero(as_tuple=True)
        found = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert (box - found).abs().max() <= 1.01


def test_evaluation_keeps_target_and_size():
    sample = square()
    image, target = build(CONFIG, train=False, augment="standard", flip=True)(sample)
    assert image.shape == (3, 48, 48) and target["size"] == (60, 80)
    assert torch.equal(target["boxes"], sample.target["boxes"]) and torch.equal(target["mask"], sample.target["mask"])


def test_normalisation_is_exact_and_leaves_the_sample_alone():
    sample = Sample(Image.new("RGB", (48, 48), (255, 102, 0)), {"label": 1, "classes": NAMES}, "plain")
    for _ in range(2):
        image, target = build(CONFIG, train=False)(sample)
        assert torch.allclose(image[:, 5, 7], torch.tensor([0.5 / 0.2, 0.0, -0.3 / 0.3]))
    assert target["label"].dtype == torch.int64 and sample.target["label"] == 1
    assert sample.image.getpixel((0, 0)) == (255, 102, 0)


def test_training_leaves_the_sample_alone():
    sample = square()
    before = {k: v.clone() for k, v in sample.target.items() if k != "classes"}
    build(CONFIG, train=True, augment="standard", flip=True)(sample)
    assert all(torch.equal(before[k], sample.target[k]) for k in before)


@pytest.mark.parametrize("preset", ["light", "standard"])
def test_only_torchs_generator_is_drawn_from(preset):
    transform = build(CONFIG, train=True, augment=preset, flip=True)
    torch.manual_seed(3)
    first, _ = transform(square())
    random.seed(99), np.random.seed(99)
    torch.manual_seed(3)
    second, _ = transform(square())
    torch.manual_seed(4)
    third, _ = transform(square())
    assert torch.equal(first, second) and not torch.equal(first, third)


def test_boxes_mostly_outside_the_crop_are_dropped_with_their_labels():
    corner = square(box=(0, 0, 6, 6))
    kept = []
    for seed in range(60):
        torch.manual_seed(seed)
        _, target = build(CONFIG, train=True, augment="standard")(corner)
        assert len(target["boxes"]) == len(target["labels"])
        kept.append(len(target["boxes"]))
    assert 0 < sum(kept) < 60


def test_an_image_without_objects():
    sample = square()
    sample.target |= {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "difficult": torch.zeros(0).bool()}
    _, target = build(CONFIG, train=True, augment="standard", flip=True)(sample)
    assert target["boxes"].shape == (0, 4)


def test_a_sample_without_target():
    image, target = build(CONFIG, train=False)(Sample(Image.new("L", (10, 20)), {}, "any"))
    assert image.shape == (3, 48, 48) and target == {"size": (20, 10)}


def test_padding_keeps_the_shape_and_fills_with_the_mean():
    white = Sample(Image.new("RGB", (80, 40), "white"), {"mask": torch.zeros(40, 80, dtype=torch.uint8)}, "white")
    image, target = build(CONFIG, train=True, augment="none", fit="pad")(white)
    assert (brightness(image[:, :24]) > 0.99).all()
    assert image[:, 24:].abs().max() < 0.01
    assert (target["mask"][:24] == 0).all() and (target["mask"][24:] == 255).all()


@settings(max_examples=50, deadline=None)
@given(height=st.integers(8, 200), width=st.integers(8, 200), fit=st.sampled_from(["stretch", "pad"]))
def test_boxes_come_back_to_the_image(height, width, fit):
    sample = square(width, height, (1, 2, width - 2, height - 1))
    _, target = build(CONFIG, train=True, augment="none", fit=fit)(sample)
    back = boxes_to_size(target["boxes"], (height, width), CONFIG.size, fit)
    assert torch.allclose(back, sample.target["boxes"], atol=1e-3)


def test_boxes_are_cut_at_the_border():
    boxes = torch.tensor([[-5.0, -5.0, 100.0, 100.0]])
    assert boxes_to_size(boxes, (30, 60), (48, 48)).tolist() == [[0, 0, 60, 30]]


def test_content_of_a_padded_image():
    assert content((60, 80), (48, 48), "pad") == (36, 48)
    assert content((60, 80), (48, 48)) == (48, 48)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "RGB"])
def test_any_mode_becomes_rgb(mode):
    assert to_rgb(Image.new("RGB", (5, 4), "red").convert("L").convert(mode) if mode in "1LLAIF" else
                  Image.new("RGB", (5, 4), "red").convert(mode)).mode == "RGB"  # fmt: skip


def test_16_bit_greys_are_scaled():
    values = np.array([[0, 32768, 65535]], np.uint16)
    assert np.asarray(to_rgb(Image.fromarray(values)))[0, :, 0].tolist() == [0, 127, 255]


def test_a_palette_with_transparency_raises_no_warning():
    image = Image.new("P", (4, 4))
    image.info["transparency"] = b"\x00\xff"
    assert to_rgb(image).mode == "RGB"


def test_exif_orientation_is_honoured(tmp_path):
    image = Image.new("RGB", (30, 10))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert to_rgb(Image.open(tmp_path / "turned.jpg")).size == (10, 30)


def test_unknown_preset_and_fit():
    with pytest.raises(UsageError, match='augment "ligth"') as caught:
        build(CONFIG, train=True, augment="ligth")
    assert 'did you mean "light"' in caught.value.hint
    with pytest.raises(UsageError, match='fit "crop"'):
        build(CONFIG, train=True, fit="crop")


def test_augmentation_in_numbers():
    task = made(Classification, {"augment": {"area": [0.25, 0.25], "aspect": 1.0, "colour": [0, 0, 0, 0]}})
    drawn = {task.transform(CONFIG, train=True)(square())[0].sum().item() for _ in range(8)}
    assert task.augment.visible == 0.4 and len(drawn) > 1
    whole = made(Classification, {"augment": {"area": [1, 1], "aspect": 1.0, "colour": [0, 0, 0, 0]}})
    plain = build(CONFIG, train=True, augment="none")(square())[0]
    torch.testing.assert_close(whole.transform(CONFIG, train=True)(square())[0], plain)


@pytest.mark.parametrize(
    ("table", "message", "hint"),
    [
        ({"areas": [0.5, 1.0]}, "no setting tasks.a.augment.areas", 'did you mean "area"'),
        ({"area": [0.0, 1.0]}, "tasks.a.augment.area", "a number from 0 to 1]"),
        ({"area": [0.9, 0.5]}, r"\[0.9, 0.5\] is no range", "the smaller fraction first"),
        ({"aspect": 0.5}, "tasks.a.augment.aspect = 0.5", "the default is 1.1"),
        ("heavy", 'tasks.a.augment = "heavy"', "a table of area, aspect, colour, visible"),
    ],
)
def test_augmentation_that_makes_no_sense(table, message, hint):
    with pytest.raises(UsageError, match=message) as caught:
        made(Classification, {"augment": table}, "tasks.a")
    assert hint in caught.value.hint
