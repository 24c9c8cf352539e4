"""Segmentation: one confusion matrix, sub-patch predictions, heads that grow, masks at the image's own size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.segmentation_toys import NAMES, VIT, features, target

from mtpeft.api import DataError, Features, FeaturesInfo, ImageConfig, UsageError
from mtpeft_tasks.segmentation.heads import Linear
from mtpeft_tasks.segmentation.metric import MeanIoU, confusion, renumbered
from mtpeft_tasks.segmentation.task import Segmentation

PYRAMID = FeaturesInfo(pooled=8, channels=(4, 6, 8), strides=(4, 8, 16), prefix=0, image_size=(32, 48))


@pytest.mark.parametrize("info", [VIT, PYRAMID])
def test_logits_have_the_size_of_the_input(info):
    assert Linear(info, NAMES)(features(info)).shape == (2, 3, 32, 48)


def test_the_finest_predictions_are_at_most_two_pixels_wide_on_small_inputs():
    assert Linear(VIT, NAMES).upscale == 4
    assert Linear(PYRAMID, NAMES).upscale == 2
    large = FeaturesInfo(pooled=6, channels=(6,), strides=(16,), prefix=1, image_size=(224, 224))
    assert Linear(large, NAMES).upscale == 4
    assert Linear(VIT, NAMES, upscale=8).upscale == 8


def test_parameters_are_counted():
    assert sum(p.numel() for p in Linear(VIT, NAMES).parameters()) == 2 * 6 + 3 * 16 * (6 + 1)
    expected = 2 * (4 + 6 + 8) + (4 + 6 + 8 + 3) * 10 + 3 * 4 * (10 + 1)
    assert sum(p.numel() for p in Linear(PYRAMID, NAMES, width=10).parameters()) == expected


def test_of_several_maps_of_one_stride_the_deepest_is_read():
    info = FeaturesInfo(pooled=6, channels=(5, 6), strides=(8, 8), prefix=0, image_size=(32, 48))
    assert Linear(info, NAMES).maps == (1,)


def test_a_cell_predicts_its_own_patch():
    """Changing one cell changes the logits of its own pixels only, where no interpolation follows."""
    head, one = Linear(VIT, NAMES, upscale=8), features(VIT, 1)
    other = Features(one.pooled, (one.maps[0].clone(),))
    other.maps[0][0, :, 1, 2] += torch.arange(6.0)
    changed = (head(one) != head(other)).any(1)[0]
    assert changed[8:16, 16:24].all() and changed.sum() == 64


@pytest.mark.parametrize("info", [VIT, PYRAMID])
def test_extending_keeps_old_rows_bit_identical(info):
    head = Linear(info, NAMES)
    before, rows = head(features(info)), {name: p.detach().clone() for name, p in head.named_parameters()}
    head.extend(("background", "c"))
    after = head(features(info))
    assert head.classes == (*NAMES, "c") and after.shape[1] == 4
    assert all(torch.equal(p[: len(rows[name])], rows[name]) for name, p in head.named_parameters())
    assert torch.allclose(before, after[:, :3], atol=1e-6)


@pytest.mark.parametrize("info", [VIT, PYRAMID])
def test_every_head_tensor_gets_a_gradient(info):
    head, task = Linear(info, NAMES), Segmentation()
    loss = task.loss(head, head(features(info, 1)), [target(torch.ones(32, 48))])["cross_entropy"]
    loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters())


def test_loss_is_over_labelled_pixels_and_maps_by_name():
    head = Linear(VIT, ("b", "background", "a"))
    outputs = torch.zeros(1, 3, 2, 2)
    outputs[0, 0] = 5.0
    mask = target([[2, 255], [255, 255]])
    expected = -torch.log_softmax(torch.tensor([5.0, 0, 0]), 0)[0]
    assert torch.allclose(Segmentation().loss(head, outputs, [mask])["cross_entropy"], expected)


def test_loss_without_any_labelled_pixel_is_zero():
    head, outputs = Linear(VIT, NAMES), torch.zeros(2, 3, 2, 2, requires_grad=True)
    loss = Segmentation().loss(head, outputs, [target(torch.full((2, 2), 255)), {}])["cross_entropy"]
    loss.backward()
    assert loss.item() == 0 and not outputs.grad.any()


def test_loss_takes_a_mask_of_the_images_own_size():
    head, outputs = Linear(VIT, NAMES), torch.randn(1, 3, 8, 8)
    small = torch.randint(0, 3, (8, 8))
    large = small.repeat_interleave(3, 0).repeat_interleave(5, 1)
    losses = [Segmentation().loss(head, outputs, [target(mask)])["cross_entropy"] for mask in (small, large)]
    assert torch.allclose(*losses)


def test_a_class_that_the_head_does_not_know():
    with pytest.raises(DataError, match='class "c"'):
        Segmentation().loss(Linear(VIT, NAMES), torch.zeros(1, 3, 2, 2), [target(torch.zeros(2, 2), (*NAMES, "c"))])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 5))
def test_confusion_is_a_count(seed, count):
    random = np.random.default_rng(seed)
    actual, predicted = random.integers(0, count, (7, 9)), random.integers(0, count, (7, 9))
    actual[random.random((7, 9)) < 0.2] = 255
    matrix = confusion(torch.tensor(actual), torch.tensor(predicted), count)
    expected = [[((actual == i) & (predicted == j)).sum() for j in range(count)] for i in range(count)]
    assert matrix.tolist() == expected


def test_mean_iou_against_hand_counts():
    metric = MeanIoU(NAMES)
    metric.update([{"mask": torch.tensor([[0, 0], [1, 1]])}], [target([[0, 1], [1, 255]])])
    score = metric.compute()
    assert score.detail == {
        "classes": list(NAMES),
        "intersections": [1, 1, 0],
        "unions": [2, 2, 0],
        "pixels": [1, 2, 0],
    }
    assert score.value == 50.0 and score.count == 1


def test_mean_iou_is_recomputed_from_its_counts():
    torch.manual_seed(0)
    metric = MeanIoU(NAMES)
    metric.update([{"mask": torch.randint(0, 3, (9, 9))}], [target(torch.randint(0, 2, (9, 9)))])
    detail = metric.compute().detail
    rows = zip(detail["intersections"], detail["unions"], detail["pixels"], strict=True)
    ratios = [i / u for i, u, n in rows if n]
    assert len(ratios) == 2 and metric.compute().value == pytest.approx(100 * sum(ratios) / len(ratios))


def test_mean_iou_is_of_the_data_set_and_not_of_images():
    """Two images of very different content: the mean of their own IoUs would be another number."""
    predictions = [{"mask": torch.zeros(4, 4, dtype=torch.uint8)}, {"mask": torch.ones(4, 4, dtype=torch.uint8)}]
    targets = [target(torch.zeros(4, 4)), target(torch.eye(4))]
    together, turned = MeanIoU(NAMES), MeanIoU(NAMES)
    together.update(predictions, targets)
    for prediction, one in zip(predictions[::-1], targets[::-1], strict=True):
        turned.update([prediction], [one])
    assert together.compute() == turned.compute()
    assert together.compute().value == pytest.approx(100 * (16 / 28 + 4 / 16) / 2)


def test_mean_iou_of_nothing_is_undefined():
    metric = MeanIoU(NAMES)
    metric.update([{"mask": torch.zeros(2, 2)}] * 2, [target(torch.full((2, 2), 255)), {}])
    assert metric.compute().value is None and metric.compute().count == 2


def test_a_class_not_known_counts_against_what_was_predicted():
    metric = MeanIoU(("background",))
    metric.update([{"mask": torch.zeros(1, 4)}], [target([[0, 0, 0, 1]], ("background", "new"))])
    assert metric.compute().value == 75.0


def test_renumbering_keeps_what_is_ignored():
    mask = torch.tensor([[0, 1, 255]], dtype=torch.uint8)
    assert renumbered(mask, ("x", "y"), ("y", "z", "x")).tolist() == [[2, 0, 255]]
    assert renumbered(mask, ("x", "y"), ("y",), unknown=1).tolist() == [[1, 0, 255]]


@pytest.mark.parametrize("fit", ["stretch", "pad"])
def test_decode_gives_the_images_own_size(fit):
    outputs = torch.zeros(1, 3, 32, 48)
    outputs[0, 1, :, :24] = 1
    [prediction] = Segmentation(fit=fit).decode(Linear(VIT, NAMES), outputs, [{"size": (50, 60)}])
    mask = prediction["mask"]
    assert mask.shape == (50, 60) and mask.dtype == torch.uint8
    assert (mask[:, 0] == 1).all() and (mask[:, -1] == 0).all()
    border = 30 if fit == "stretch" else round(24 * 60 / 38)
    assert (mask[10] == 1).sum() == pytest.approx(border, abs=1)


def test_describe_and_draw():
    task, prediction = Segmentation(), {"mask": torch.tensor([[0, 1], [1, 1]], dtype=torch.uint8)}
    assert task.describe(prediction, NAMES) == {"size": [2, 2], "area": {"background": 0.25, "a": 0.75}}
    assert task.draw(Image.new("RGB", (2, 2)), prediction, NAMES).size == (256, 256)


def test_unknown_head():
    with pytest.raises(UsageError, match='head "upernett"') as caught:
        Segmentation(head_config={"name": "upernett"}).head(VIT, NAMES)
    assert 'did you mean "upernet"?' in caught.value.hint


def test_the_embedded_data_end_to_end():
    """One scene, raw 4 x 4 patches as features: ink is told from background."""
    torch.manual_seed(0)
    task = Segmentation(augment="none", classes=("1",))
    data = task.dataset("train")
    transform = task.transform(ImageConfig((64, 64), (0.5,) * 3, (0.5,) * 3), train=True)
    images, targets = task.collate([transform(data[index]) for index in range(1)])
    patches = torch.nn.functional.pixel_unshuffle(images, 4)
    info = FeaturesInfo(48, (48,), (4,), 0, (64, 64))
    head = task.head(info, data.classes)
    optimizer = torch.optim.Adam(head.parameters(), 0.05)
    losses = []
    for _ in range(60):
        outputs = head(Features(patches.mean((2, 3)), (patches,)))
        loss = task.loss(head, outputs, targets)["cross_entropy"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    metric = task.metric(head.classes)
    metric.update(task.decode(head, outputs, targets), targets)
    assert losses[-1] < 0.3 * losses[0] and metric.compute().value > 70
