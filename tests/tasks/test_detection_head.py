"""The FCOS head: equal to torchvision's, the same for each sample in any batch, and it learns."""

from __future__ import annotations

import pytest
import torch
from support.detection_toys import CLASSES, HIERARCHICAL, PLAIN, Prepared, features, target
from torch import nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from mtpeft.api import DataError, Features, FeaturesInfo, UsageError
from mtpeft_tasks.detection.anchors import CellAnchors
from mtpeft_tasks.detection.fcos import FCOSDetector, useful_strides
from mtpeft_tasks.detection.task import Detection

TARGETS = [
    target([[2, 3, 30, 40], [33, 20, 60, 44]], [0, 2]),
    target([], []),
    target([[10, 10, 22, 29], [5, 30, 63, 62], [40, 1, 60, 21]], [1, 1, 0]),
]


def detector(info: FeaturesInfo = PLAIN, classes=CLASSES, **settings) -> FCOSDetector:
    torch.manual_seed(0)
    return FCOSDetector(info, classes, **({"width": 32, "convs": 1} | settings))


def torchvision_model(head: FCOSDetector, maps: list[torch.Tensor]) -> FCOS:
    model = FCOS(
        Prepared(maps),
        len(head.classes),
        anchor_generator=CellAnchors(head.pyramid.strides),
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        score_thresh=0.05,
        min_size=head.image_size[0],
        max_size=head.image_size[0],
    )
    towers = head.detector.head
    model.head = type(model.head)(32, 1, len(head.classes), num_convs=1)
    model.head.load_state_dict(towers.state_dict())
    return model


def lively(head: FCOSDetector) -> FCOSDetector:
    """With scores high enough to be detections."""
    nn.init.normal_(head.detector.head.classification_head.cls_logits.weight, std=0.2)
    nn.init.constant_(head.detector.head.classification_head.cls_logits.bias, 0.0)
    return head


@pytest.mark.parametrize("info", [PLAIN, HIERARCHICAL], ids=["plain", "hierarchical"])
def test_losses_are_the_mean_of_torchvisions_over_the_images(info):
    head, batch = detector(info), features(info)
    ours = head.loss(head(batch), TARGETS)
    singles = []
    for index, one in enumerate(TARGETS):
        model = torchvision_model(head, head.pyramid(batch[index : index + 1]))
        singles.append(model([torch.zeros(3, *info.image_size)], [one]))
    names = {"classification": "classification", "regression": "bbox_regression", "centerness": "bbox_ctrness"}
    assert ours.keys() == names.keys()
    for name, theirs in names.items():
        torch.testing.assert_close(ours[name], torch.stack([single[theirs] for single in singles]).mean())
        assert ours[name] > 0


@pytest.mark.parametrize("info", [PLAIN, HIERARCHICAL], ids=["plain", "hierarchical"])
def test_detections_are_torchvisions(info):
    head, batch = lively(detector(info)), features(info)
    theirs = torchvision_model(head, head.pyramid(batch)).eval()([torch.zeros(3, *info.image_size)] * 3)
    ours = head.detect(head(batch))
    assert [len(found["boxes"]) for found in ours] == [100] * 3
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_loss_over_a_batch_is_the_mean_over_its_parts():
    head, batch = detector(), features(PLAIN)
    whole = head.loss(head(batch), TARGETS)
    parts = [head.loss(head(batch[i : i + 1]), TARGETS[i : i + 1]) for i in range(3)]
    for name, value in whole.items():
        torch.testing.assert_close(value, torch.stack([part[name] for part in parts]).mean())


def test_outputs_do_not_depend_on_mode_or_on_the_rest_of_the_batch():
    head, batch = detector(), features(PLAIN)
    points, still = head.train()(batch), head.eval()(batch)
    alone = head(batch[1:2])
    for name, value in points.named.items():
        assert torch.equal(value, still.named[name])
        torch.testing.assert_close(value[1:2], alone.named[name])


def test_no_object_gives_finite_losses_and_samples_without_boxes_none():
    head, batch = detector(), features(PLAIN)
    empty = head.loss(head(batch), [target([], [])] * 3)
    assert (empty["regression"], empty["centerness"]) == (0, 0)
    assert empty["classification"].isfinite() and empty["classification"] > 0
    sum(empty.values()).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())
    unlabelled = sum(head.loss(head(batch), [{}] * 3).values())
    assert unlabelled == 0 and unlabelled.requires_grad
    some = head.loss(head(batch), [{}, TARGETS[0], {}])
    alone = head.loss(head(batch[1:2]), TARGETS[:1])
    torch.testing.assert_close(some, alone)


def test_labels_are_matched_by_name():
    head, batch = detector(), features(PLAIN, batch=1)
    renamed = {**TARGETS[0], "labels": torch.tensor([1, 0]), "classes": ("owl", "cat")}
    assert head.loss(head(batch), [renamed]) == head.loss(head(batch), TARGETS[:1])
    with pytest.raises(DataError, match="wolf"):
        head.loss(head(batch), [{**TARGETS[0], "classes": ("wolf", "dog", "owl")}])


def test_extending_leaves_every_known_row_bit_identical():
    head, batch = detector(), features(PLAIN)
    before, state = head(batch), {name: value.clone() for name, value in head.state_dict().items()}
    head.extend(["owl", "eel", "eel", "fox"])
    assert head.classes == ("cat", "dog", "owl", "eel", "fox")
    after = head(batch)
    assert after.named["cls_logits"].shape[-1] == 5
    for name, value in head.state_dict().items():
        assert torch.equal(value[: len(state[name])], state[name])
    torch.testing.assert_close(after.named["cls_logits"][..., :3], before.named["cls_logits"])
    assert torch.equal(after.named["bbox_regression"], before.named["bbox_regression"])
    assert after.named["cls_logits"][..., 3:].detach().sigmoid().mean() == pytest.approx(0.01, abs=0.003)
    sum(head.loss(after, [target([[2, 3, 30, 40]], [0], ("fox",))] * 3).values()).backward()
    assert head.detector.head.classification_head.cls_logits.weight.grad[4].abs().max() > 0


def test_extending_by_known_classes_changes_nothing():
    head = detector()
    before = {name: value.clone() for name, value in head.state_dict().items()}
    head.extend(["dog", "cat"])
    assert head.classes == CLASSES
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


def test_anchors_are_torchvisions_moved_to_the_middle_of_the_cells():
    maps = [torch.zeros(2, 1, 8, 6), torch.zeros(2, 1, 4, 3)]
    images = ImageList(torch.zeros(2, 3, 64, 48), [(64, 48)] * 2)
    theirs = AnchorGenerator(((8,), (16,)), ((1.0,),) * 2)(images, maps)
    half = torch.cat([torch.full((48, 1), 4.0), torch.full((12, 1), 8.0)])
    torch.testing.assert_close(CellAnchors((8, 16))(images, maps), [boxes + half for boxes in theirs])


def test_anchors_of_odd_strides_and_sizes_are_exact():
    anchors = CellAnchors((7,)).of([torch.zeros(1, 1, 2, 3)])
    assert anchors[[0, -1]].tolist() == [[0, 0, 7, 7], [14, 7, 21, 14]]


@pytest.mark.parametrize(
    ("stride", "side", "strides"),
    [(8, 64, (4, 8)), (16, 224, (8, 16, 32)), (16, 128, (8, 16)), (14, 518, (7, 14, 28)), (16, 32, (8,))],
)
def test_levels_that_no_box_can_fall_on_are_left_out(stride, side, strides):
    info = FeaturesInfo(16, (16,), (stride,), 1, (side, side))
    assert useful_strides(info) == strides == detector(info).pyramid.strides


@pytest.mark.parametrize(("maps", "size"), [((8, 8), (64, 64)), ((16, 8), (128, 64))])
def test_the_image_size_follows_the_maps(maps, size):
    points = detector()(Features(torch.zeros(1, 16), (torch.randn(1, 16, *maps),)))
    assert points.image_size == size


@pytest.mark.parametrize("width", [0, 16, 48])
def test_a_width_that_group_norm_cannot_divide_is_refused(width):
    with pytest.raises(UsageError, match=rf"fcos\.width = {width} does not fit") as caught:
        Detection(head_config={"width": width}).head(PLAIN, CLASSES)
    assert caught.value.hint == "fcos.width takes a multiple of 32; the default is 64"


def test_bfloat16_features_give_float_outputs():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        head = detector()
        points = head(features(PLAIN))
        losses = head.loss(points, TARGETS)
    assert {value.dtype for value in [*points.named.values(), *losses.values()]} == {torch.float32}
