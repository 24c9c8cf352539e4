"""The head of queries: matching, its losses in closed form, growth, and that it learns."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.segmentation_toys import COARSE, NAMES, VIT, every_info, features, target
from torch.nn import functional as F

import mtpeft
from mtpeft.api import FeaturesInfo, UsageError
from mtpeft.backbone.extract import Extractor
from mtpeft.plugins import resolve
from mtpeft.testing import check_task
from mtpeft.testing.zoo import zoo
from mtpeft_tasks.segmentation.query import CLASS, DICE, MASK, Outputs, Query, compared, image_losses, matched, segments
from mtpeft_tasks.segmentation.task import Segmentation

CONFIG = {"name": "query", "width": 32, "queries": 6}


def made(info=VIT, classes=NAMES, **settings) -> Query:
    torch.manual_seed(0)
    return Segmentation(head_config=CONFIG | settings).head(info, classes)


def stripes(info: FeaturesInfo = VIT, first: int = 0, last: int = 2) -> torch.Tensor:
    """Vertical stripes of the classes from ``first`` to ``last``."""
    return torch.arange(info.image_size[1]).expand(info.image_size) // 4 % (last - first + 1) + first


def losses(head: Query, outputs: Outputs, *masks: torch.Tensor) -> list[float]:
    found = Segmentation().loss(head, outputs, [target(mask) for mask in masks])
    assert list(found) == ["classification", "mask", "dice"]
    return [float(value.detach()) for value in found.values()]


def same(one: Outputs, other: Outputs) -> None:
    torch.testing.assert_close(one.classes, other.classes)
    torch.testing.assert_close(one.masks, other.masks)


def test_the_kit_passes():
    check_task(Segmentation(head_config={"name": "query", "width": 32}))


@every_info
def test_shapes(info):
    head = made(info)
    outputs, upscale = head(features(info)), {8: 4, 16: 4 if info is COARSE else 8}[head.mixed.start.stride]
    height, width = (side // head.mixed.start.stride * upscale for side in info.image_size)
    assert outputs.classes.shape == (2, 6, 4) and outputs.masks.shape == (2, 6, height, width)
    assert head.scores(outputs).shape == (2, 3, *info.image_size)
    assert made(info, queries=3)(features(info)).masks.shape[1] == 3


@every_info
def test_neither_the_mode_nor_the_rest_of_the_batch_matters(info):
    head, batch = made(info), features(info, 3)
    together = head.train()(batch)
    same(head.eval()(batch), together)
    same(head(batch[1:2]), Outputs(together.classes[1:2], together.masks[1:2]))


def test_the_loss_is_a_mean_over_images_in_any_order():
    head, batch = made(), features(VIT, 3)
    masks = [stripes(), stripes(first=1), torch.zeros(32, 48)]
    one = losses(head, head(batch), *masks)
    assert losses(head, head(batch[torch.tensor([2, 0, 1])]), masks[2], masks[0], masks[1]) == pytest.approx(one)
    alone = [losses(head, head(batch[i : i + 1]), mask) for i, mask in enumerate(masks)]
    assert [sum(values) / 3 for values in zip(*alone, strict=True)] == pytest.approx(one, rel=1e-5)


@every_info
def test_every_tensor_gets_a_gradient(info):
    head = made(info)
    found = Segmentation().loss(head, head(features(info, 1)), [target(stripes(info))])
    sum(found.values()).backward()
    assert [key for key, parameter in head.named_parameters() if not parameter.grad.abs().sum() > 0] == []


def test_extending_keeps_old_rows_bit_identical():
    head = made()
    before, rows = head(features(VIT)), {key: p.detach().clone() for key, p in head.named_parameters()}
    head.extend(("background", "c", "c", "d"))
    after = head(features(VIT))
    assert head.classes == (*NAMES, "c", "d")
    assert all(torch.equal(p[: len(rows[key])], rows[key]) for key, p in head.named_parameters())
    assert {key for key, p in head.named_parameters() if p.shape != rows[key].shape} == {"weight", "bias"}
    same(Outputs(after.classes[..., [0, 1, 2, -1]], after.masks), before)
    assert head.scores(after).shape == (2, 5, 32, 48)


def test_the_order_of_the_classes_in_the_data_does_not_matter():
    head, mask = made(), stripes()
    outputs = head(features(VIT, 1))
    turned = Segmentation().loss(head, outputs, [target((mask + 1) % 3, ("b", "background", "a"))])
    assert [float(value.detach()) for value in turned.values()] == losses(head, outputs, mask)


def test_a_grown_head_is_saved_and_comes_back(tmp_path):
    spec = mtpeft.head("seg", NAMES, head_config=CONFIG)
    host = mtpeft.adapt(zoo()["vit-gap"](), "lora", {"one": spec}).eval()
    host.head_of("one").extend(["c"])
    host.save(tmp_path / "adapter")
    again = mtpeft.load(tmp_path / "adapter", zoo()["vit-gap"]()).eval()
    assert again.head_of("one").classes == (*NAMES, "c")
    images = torch.randn(2, 3, *host.image_size)
    with torch.no_grad():
        one, other = host.predict(images, "one"), again.predict(images, "one")
    assert torch.equal(one.classes, other.classes) and torch.equal(one.masks, other.masks)


@pytest.mark.parametrize("family", ["vit", "vit-gap", "swin", "hiera", "convnext", "resnet"])
def test_it_runs_on_every_kind_of_backbone(family):
    model = zoo()[family]()
    size = (64, 96) if family in ("convnext", "resnet") else tuple(model.pretrained_cfg["input_size"][1:])
    extractor = Extractor(model, size)
    head, task = made(extractor.info(model)), Segmentation(fit="pad")
    with torch.no_grad():
        outputs = head(extractor(model, torch.randn(2, 3, *size)))
    assert head.scores(outputs).isfinite().all()
    (mask, _) = (found["mask"] for found in task.decode(head, outputs, [{"size": (50, 60)}] * 2))
    assert mask.shape == (50, 60) and mask.dtype == torch.uint8


def test_parameters_are_counted():
    block = 12 * 32**2 + 13 * 32
    parts = 33 * 4**2 * 16
    of_query = 33 * 32 + 33 * 16
    expected = 2 * 6 + 7 * 32 + 2 * block + 64 + 6 * 32 + parts + of_query + 33 + 3 * 33
    assert sum(parameter.numel() for parameter in made().parameters()) == expected


# segments


def test_segments_are_shares_of_cells():
    mask = torch.tensor([[0, 0, 2, 255], [0, 2, 2, 255]])
    present, shares, labelled = segments(mask, (1, 2))
    assert present.tolist() == [0, 2]
    assert shares.tolist() == [[0.75, 0.0], [0.25, 0.5]] and labelled.tolist() == [1.0, 0.5]


def test_a_single_pixel_of_a_class_is_a_segment():
    mask = torch.zeros(64, 64, dtype=torch.int64)
    mask[17, 40] = 1
    present, shares, _ = segments(mask, (4, 4))
    assert present.tolist() == [0, 1] and shares[1].sum() == 1 / 256


@given(seed=st.integers(0, 10_000), classes=st.integers(1, 4))
def test_losses_on_cells_are_those_on_pixels(seed, classes):
    """Of a mask that is even within a cell; dice counts cells, and its 1 is one of them."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.randint(0, classes + 1, (6, 8), generator=generator)
    mask[mask == classes] = 255
    mask[0, 0] = 0
    logits = 3 * torch.randn(5, 3, 2, generator=generator)
    present, shares, labelled = segments(mask, (3, 2))
    entropy, dice = compared(logits.flatten(1), shares, labelled)
    pixels = logits.repeat_interleave(2, 1).repeat_interleave(4, 2)[:, mask != 255]  # (N, pixels)
    for column, value in enumerate(present):
        wanted = (mask == value)[mask != 255].float().expand_as(pixels)
        expected = F.binary_cross_entropy_with_logits(pixels, wanted, reduction="none").mean(1)
        torch.testing.assert_close(entropy[:, column], expected)
        chance = pixels.sigmoid()
        ratio = (2 * (chance * wanted).sum(1) / 8 + 1) / ((chance + wanted).sum(1) / 8 + 1)
        torch.testing.assert_close(dice[:, column], 1 - ratio)


# matching


def test_matching_is_one_to_one_at_the_least_cost():
    """Greedily, the first row would take its 1 and leave 9 to the second: 10, where 4 can be had."""
    rows, columns = matched(torch.tensor([[1.0, 2.0], [2.0, 9.0], [8.0, 8.0]]))
    assert (list(rows), list(columns)) == ([0, 1], [1, 0])


def by_hand() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three queries of two classes: the first says right and class 1, the second left and class 0, the last nothing."""
    masks = torch.tensor([[[-2.0, 2.0]], [[2.0, -2.0]], [[0.0, 0.0]]])
    classes = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    return classes, masks, torch.tensor([[0, 0, 1, 1]])


def test_losses_by_hand():
    named, mask, dice = image_losses(*by_hand(), smoothing=0.0)
    right = -torch.tensor([1.0, 0.0, 0.0]).log_softmax(0)[0]  # of every query, also the one that finds nothing
    assert named == pytest.approx(CLASS * float(right), rel=1e-5)
    assert mask == pytest.approx(MASK * float(F.softplus(torch.tensor(-2.0))), rel=1e-5)
    chance = torch.sigmoid(torch.tensor(2.0))
    assert dice == pytest.approx(DICE * float(1 - (2 * chance + 1) / 3), rel=1e-5)


def test_what_is_left_over_weighs_a_tenth():
    """One segment: the queries that are not matched are asked for no object, at a tenth of the weight."""
    classes, masks, _ = by_hand()
    named, *_ = image_losses(classes, masks, torch.tensor([[1, 1, 0, 0]]) * 255, smoothing=0.0)
    entropy = -classes.log_softmax(-1)
    expected = (entropy[0, 0] + 0.1 * entropy[1, 2] + 0.1 * entropy[2, 2]) / 1.2
    assert named == pytest.approx(CLASS * float(expected), rel=1e-5)


def test_masks_decide_where_classes_do_not():
    classes, masks, mask = by_hand()
    even = torch.zeros_like(classes)
    _, *one = image_losses(even, masks, mask, smoothing=0.0)
    _, *other = image_losses(classes, masks, mask, smoothing=0.0)
    assert one == other


def test_more_classes_than_queries():
    """The segment that fits best is matched; the others are left out."""
    classes, masks, _ = by_hand()
    found = image_losses(classes[:1], masks[:1], torch.tensor([[0, 0, 1, 1]]), smoothing=0.0)
    entropy = -classes[0].log_softmax(-1)
    expected = (CLASS * entropy[1], MASK * F.softplus(torch.tensor(-2.0)))
    assert [float(value) for value in found[:2]] == pytest.approx([float(value) for value in expected], rel=1e-5)


def test_labels_may_be_smoothed():
    head = made()
    outputs = head(features(VIT, 1))
    smooth = Segmentation(label_smoothing=0.2).loss(head, outputs, [target(stripes())])
    plain = Segmentation().loss(head, outputs, [target(stripes())])
    assert [torch.equal(smooth[name], plain[name]) for name in plain] == [False, True, True]


# what is not labelled


def test_ignored_pixels_take_no_part():
    """Whatever the masks say where nothing is labelled, every loss is the same, and no gradient comes from there."""
    head = made()
    outputs, mask = head(features(VIT, 1)), stripes().clone()
    mask[:, 24:] = 255
    logits = outputs.masks.detach().requires_grad_()
    found = Segmentation().loss(head, Outputs(outputs.classes, logits), [target(mask)])
    sum(found.values()).backward()
    assert logits.grad[..., :12].any() and not logits.grad[..., 12:].any()
    other = logits.detach().clone()
    other[..., 12:] = 7 * torch.randn_like(other[..., 12:])
    assert losses(head, Outputs(outputs.classes, other), mask) == [float(value.detach()) for value in found.values()]


def test_an_image_without_any_labelled_pixel_counts_for_nothing():
    head, batch = made(), features(VIT, 3)
    bare = torch.full((32, 48), 255)
    with_bare = losses(head, head(batch), stripes(), bare, stripes())
    assert with_bare == pytest.approx(losses(head, head(batch[torch.tensor([0, 2])]), stripes(), stripes()))
    found = Segmentation().loss(head, head(batch[:2]), [target(bare), {}])
    sum(found.values()).backward()
    assert [float(value.detach()) for value in found.values()] == [0, 0, 0]
    assert not any(parameter.grad.any() for parameter in head.parameters() if parameter.grad is not None)


def test_autocast_leaves_the_losses_as_they_are():
    head = made()
    outputs = head(features(VIT, 1))
    with torch.autocast("cpu", torch.bfloat16):
        found = losses(head, outputs, stripes())
    assert found == losses(head, outputs, stripes())


def test_a_loss_that_is_no_number_is_told_and_not_raised():
    head = made()
    outputs = head(features(VIT, 1))
    outputs.masks[:] = float("nan")
    assert [math.isnan(value) for value in losses(head, outputs, stripes())] == [True] * 3


# use


def test_scores_sum_over_the_queries():
    head = made(classes=("a", "b"), queries=2, upscale=8)
    classes = torch.tensor([[[2.0, 0.0, 0.0], [0.0, 3.0, 1.0]]])
    masks = torch.randn(1, 2, 32, 48)
    first, second = classes.softmax(-1)[0]
    chance = masks.sigmoid()[0]
    expected = torch.stack([first[k] * chance[0] + second[k] * chance[1] for k in range(2)])
    torch.testing.assert_close(head.scores(Outputs(classes, masks))[0], expected)


@pytest.mark.parametrize(
    ("setting", "value", "hint"),
    [("width", 48, "multiple of 32"), ("queries", 0, "default is 32"), ("layers", 0, "is 2")],
)
def test_settings_that_cannot_be_are_refused_with_a_hint(setting, value, hint):
    with pytest.raises(UsageError, match=rf"query\.{setting} = {value} does not fit") as caught:
        made(**{setting: value})
    assert hint in caught.value.hint


@pytest.mark.parametrize("kind", ["depth", "normals", "saliency", "edges"])
def test_what_is_no_class_takes_a_head_of_pixels(kind):
    with pytest.raises(UsageError, match='unknown head "query"') as caught:
        resolve("tasks", kind)(head_config={"name": "query"}).head(VIT, ("x",))
    assert "upernet" in caught.value.hint
