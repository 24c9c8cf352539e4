"""RetinaNet and Faster R-CNN equal torchvision's; anchors, shares and pooled regions in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from support.detection_toys import CLASSES, HIERARCHICAL, PLAIN, TARGETS, WIDE, Prepared, as_it_is, features, images
from torch import nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import MultiScaleRoIAlign, box_iou

from mtpeft.api import FeaturesInfo
from mtpeft_tasks.detection.anchors import RATIOS, CellAnchors, ladder, roomy_strides
from mtpeft_tasks.detection.faster_rcnn import FasterRCNNDetector, RegionPool, proposals_for, shares
from mtpeft_tasks.detection.retinanet import RetinaNetDetector

every_info = pytest.mark.parametrize("info", [PLAIN, WIDE, HIERARCHICAL], ids=["plain", "wide", "hierarchical"])


def retinanet(info) -> RetinaNetDetector:
    torch.manual_seed(0)
    head = RetinaNetDetector(info, CLASSES, width=32, convs=4)  # as many as torchvision's
    nn.init.normal_(head.detector.head.classification_head.cls_logits.weight, std=0.2)
    nn.init.zeros_(head.detector.head.classification_head.cls_logits.bias)
    return head


def torchvision_retinanet(head: RetinaNetDetector, maps: list[torch.Tensor]) -> RetinaNet:
    """The same weights, its logits anchor by anchor where ours are class by class."""
    each = head.anchors.num_anchors_per_location()[0]
    plain = RetinaNetHead(32, each, len(CLASSES), lambda channels: nn.GroupNorm(32, channels))
    state = head.detector.head.state_dict()
    for name in ("classification_head.cls_logits.weight", "classification_head.cls_logits.bias"):
        state[name] = state[name].unflatten(0, (len(CLASSES), each)).transpose(0, 1).flatten(0, 1)
    plain.load_state_dict(state)
    settings = as_it_is(head)
    return RetinaNet(
        Prepared(maps), len(CLASSES), anchor_generator=head.anchors, head=plain, detections_per_img=100, **settings
    )


def faster_rcnn(info) -> FasterRCNNDetector:
    torch.manual_seed(0)
    head = FasterRCNNDetector(info, CLASSES, width=32, proposals=24)
    for layer in (head.regions.head.cls_logits, head.regions.head.bbox_pred, head.look.box_predictor.cls_score):
        nn.init.normal_(layer.weight, std=0.3)
    return head


class OurPool(nn.Module):
    """Our pooling where torchvision's would stand."""

    def __init__(self, pool: RegionPool) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, maps, boxes, sizes):
        return self.pool(list(maps.values()), boxes)


def torchvision_faster_rcnn(head: FasterRCNNDetector, maps: list[torch.Tensor], seen: int) -> FasterRCNN:
    """With our weights; its losses are over ``seen`` drawn anchors and proposals of an image."""
    kept = {f"rpn_{when}_nms_top_n_{mode}": n for when, n in (("pre", 48), ("post", 24)) for mode in ("train", "test")}
    model = FasterRCNN(
        Prepared(maps), rpn_anchor_generator=head.anchors, rpn_head=head.regions.head, box_head=head.look.box_head,
        box_predictor=head.look.box_predictor, rpn_batch_size_per_image=seen, box_batch_size_per_image=seen,
        **kept, **as_it_is(head),
    )  # fmt: skip
    model.roi_heads.box_roi_pool = OurPool(head.look.box_roi_pool)
    return model


@every_info
def test_the_losses_of_retinanet_are_torchvisions(info):
    head, batch = retinanet(info), features(info)
    ours = head.loss(head(batch), TARGETS)
    theirs = torchvision_retinanet(head, head.pyramid(batch))(images(info, 3), TARGETS)
    torch.testing.assert_close(ours["classification"], theirs["classification"])
    torch.testing.assert_close(ours["regression"], theirs["bbox_regression"])
    assert ours.keys() == {"classification", "regression"} and min(ours.values()) > 0


@every_info
def test_the_detections_of_retinanet_are_torchvisions(info):
    head, batch = retinanet(info), features(info)
    theirs = torchvision_retinanet(head, head.pyramid(batch)).eval()(images(info, 3))
    for one, other in zip(head.detect(head(batch)), theirs, strict=True):
        assert len(one["boxes"]) == 100
        assert all(torch.equal(one[name], other[name]) for name in one)


@every_info
def test_the_losses_of_faster_rcnn_are_the_mean_of_torchvisions_where_nothing_is_drawn(info):
    """With samples so large that torchvision takes all there is, chance plays no part."""
    head, batch = faster_rcnn(info), features(info)
    for part in (head.regions, head.look):
        part.fg_bg_sampler.batch_size_per_image = 10**6
    ours = head.loss(head(batch), TARGETS)
    singles = []
    for index, one in enumerate(TARGETS):
        model = torchvision_faster_rcnn(head, head.pyramid(batch[index : index + 1]), 10**6)
        singles.append(model(images(info, 1), [{**one, "labels": one["labels"] + 1}]))
    names = {
        "objectness": "loss_objectness", "proposals": "loss_rpn_box_reg",
        "classification": "loss_classifier", "regression": "loss_box_reg",
    }  # fmt: skip
    assert ours.keys() == names.keys() and min(ours.values()) > 0
    for name, theirs in names.items():
        torch.testing.assert_close(ours[name], torch.stack([single[theirs] for single in singles]).mean())


def test_the_losses_of_faster_rcnn_are_torchvisions_on_average():
    """Few are drawn: torchvision's losses scatter around ours."""
    head, batch = faster_rcnn(PLAIN), features(PLAIN, batch=1)
    for part in (head.regions, head.look):
        part.fg_bg_sampler.batch_size_per_image = 12
    ours = head.loss(head(batch), TARGETS[:1])
    model = torchvision_faster_rcnn(head, head.pyramid(batch), 12)
    with torch.no_grad():
        drawn = [model(images(PLAIN, 1), [{**TARGETS[0], "labels": TARGETS[0]["labels"] + 1}]) for _ in range(60)]
    for name, theirs in (("objectness", "loss_objectness"), ("classification", "loss_classifier")):
        values = torch.stack([losses[theirs] for losses in drawn])
        assert values.std() > 0
        assert abs(values.mean() - ours[name]) < 4 * values.std() / math.sqrt(60)


@every_info
def test_the_detections_of_faster_rcnn_are_torchvisions(info):
    head, batch = faster_rcnn(info), features(info)
    theirs = torchvision_faster_rcnn(head, head.pyramid(batch), 64).eval()(images(info, 3))
    for one, other in zip(head.detect(head(batch)), theirs, strict=True):
        assert len(one["boxes"]) > 0
        torch.testing.assert_close(one["boxes"], other["boxes"])
        torch.testing.assert_close(one["scores"], other["scores"])
        assert torch.equal(one["labels"] + 1, other["labels"])


@given(
    labels=st.lists(st.sampled_from([-1, 0, 1, 3]), min_size=1, max_size=60),
    count=st.integers(1, 40),
    fraction=st.sampled_from([0.25, 0.5]),
)
def test_shares_are_those_of_torchvisions_sampler(labels, count, fraction):
    """Within a group all are drawn alike, so how many of it are drawn says each one's share."""
    labels, sampler = torch.tensor(labels), BalancedPositiveNegativeSampler(count, fraction)
    share = shares(labels, sampler)
    (objects,), (background,) = sampler([labels])
    drawn = objects.sum() + background.sum()
    for group, taken in ((labels >= 1, objects.sum()), (labels == 0, background.sum())):
        assert share[group].unique().numel() <= 1
        torch.testing.assert_close(share[group].sum() * drawn, taken.float())
    assert not share[labels < 0].any()


def test_shares_of_several_images_are_each_ones_own():
    labels, sampler = torch.randint(-1, 3, (4, 50)).float(), BalancedPositiveNegativeSampler(16, 0.5)
    torch.testing.assert_close(shares(labels, sampler), torch.stack([shares(row, sampler) for row in labels]))


@pytest.mark.parametrize(("size", "count"), [((64, 64), 32), ((160, 160), 64), ((200, 100), 50), ((800, 600), 256)])
def test_proposals_follow_the_image(size, count):
    assert proposals_for(size) == count
    info = FeaturesInfo(16, (16,), (16,), 1, size)
    assert FasterRCNNDetector(info, CLASSES).look.fg_bg_sampler.batch_size_per_image == count


def test_the_ladder_of_sizes():
    assert ladder((64, 64), (4, 8, 16), 1) == [(8.0,), (pytest.approx(8 * math.sqrt(8)),), (64.0,)]
    assert [len(sizes) for sizes in ladder((64, 64), (4, 8, 16))] == [2, 2, 2]
    assert [len(sizes) for sizes in ladder((100, 224), (8, 16, 32))] == [3, 3, 3]
    assert ladder((16, 16), (16,)) == [(32.0,)]


@given(
    side=st.integers(32, 800),
    stride=st.sampled_from([4, 7, 8, 16]),
    levels=st.integers(1, 4),
    place=st.floats(0, 1),
    ratio=st.sampled_from(RATIOS),
)
def test_every_box_has_an_anchor_of_its_size(side, stride, levels, place, ratio):
    assume(side >= 2 * stride)
    sizes = [size for level in ladder((side, 32), [stride * 2**i for i in range(levels)]) for size in level]
    assert sizes == sorted(sizes) and sizes[0] == 2 * stride and sizes[-1] <= side * 1.0001
    size = 2 * stride * (side / (2 * stride)) ** place
    box = size / 2 * torch.tensor([[-(ratio**-0.5), -(ratio**0.5), ratio**-0.5, ratio**0.5]])
    anchors = CellAnchors((stride,), [sizes], RATIOS).cell_anchors[0]
    assert box_iou(box, anchors).max() > 1 / 1.6 - 1e-3


def test_anchors_of_several_shapes_are_torchvisions_moved_to_the_middle_of_the_cells():
    maps = [torch.zeros(2, 1, 8, 6), torch.zeros(2, 1, 4, 3)]
    sizes, ratios = ((8, 16), (32, 64)), (0.25, 1.0, 4.0)
    theirs = AnchorGenerator(sizes, (ratios,) * 2)(ImageList(torch.zeros(2, 3, 64, 48), [(64, 48)] * 2), maps)[0]
    anchors = CellAnchors((8, 16), sizes, ratios)
    assert anchors.counts(maps) == [8 * 6 * 6, 4 * 3 * 6]
    half = torch.tensor([4.0, 8.0]).repeat_interleave(torch.tensor(anchors.counts(maps)))
    torch.testing.assert_close(anchors.of(maps), theirs + half[:, None])


@pytest.mark.parametrize(
    ("stride", "side", "strides"), [(8, 64, (4, 8, 16)), (16, 160, (8, 16, 32)), (16, 48, (8, 16)), (16, 16, (8,))]
)
def test_levels_of_one_cell_are_left_out(stride, side, strides):
    info = FeaturesInfo(16, (16,), (stride,), 1, (side, side))
    assert roomy_strides(info) == strides == RetinaNetDetector(info, CLASSES, width=32).pyramid.strides


def test_a_region_is_pooled_from_the_level_that_shows_it_in_enough_cells():
    levels = [torch.full((1, 1, 64 // stride, 64 // stride), float(stride)) for stride in (2, 4, 8)]
    sides = torch.tensor([2.0, 19.9, 20.0, 39.9, 40.0, 64.0])
    boxes = torch.stack([sides * 0, sides * 0, sides, sides], 1)
    pooled = RegionPool((2, 4, 8), 5)(levels, [boxes])
    assert pooled.shape == (6, 1, 5, 5)
    assert pooled.mean((1, 2, 3)).tolist() == pytest.approx([2, 2, 4, 4, 8, 8])


def test_a_region_sees_what_lies_in_it():
    """Of a map that says where each cell's centre is, pooling gives the centres of the region's own cells."""
    stride = 7  # as in a ViT of patch 14
    x = ((torch.arange(10) + 0.5) * stride).expand(1, 1, 10, 10)
    pooled = RegionPool((stride,), 4)([x], [torch.tensor([[14.0, 7.0, 54.0, 60.0]])])
    torch.testing.assert_close(pooled[0, 0], torch.tensor([19.0, 29.0, 39.0, 49.0]).expand(4, 4))


def test_regions_are_pooled_as_by_torchvision_half_a_cell_away():
    level, boxes = torch.randn(2, 3, 16, 16), torch.tensor([[20.0, 9.0, 60.0, 40.0], [8.0, 30.0, 50.0, 59.0]])
    theirs = MultiScaleRoIAlign(["0"], 5, 2)({"0": level}, [boxes - 2, boxes[:1] - 2], [(64, 64)] * 2)
    ours = RegionPool((4,), 5)([level], [boxes, boxes[:1]])
    torch.testing.assert_close(ours, theirs)
