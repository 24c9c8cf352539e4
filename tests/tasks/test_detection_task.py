"""The task type ``det``: coordinates, settings, bad boxes, and that it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mtpeft.api import DataError, Features, FeaturesInfo, ImageConfig, Sample, UsageError
from mtpeft_tasks.detection.detector import Outputs
from mtpeft_tasks.detection.task import Detection

CLASSES = ("cat", "dog")
INFO = FeaturesInfo(8, (8,), (8,), 1, (64, 64))
CONFIG = ImageConfig((64, 64), (0.5,) * 3, (0.5,) * 3)


def sample(boxes, size=(100, 200), **more) -> Sample:
    """An image of ``size`` (height, width) with boxes of class ``dog``."""
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    target = {"boxes": boxes, "labels": torch.ones(len(boxes), dtype=torch.long), "classes": CLASSES}
    return Sample(Image.new("RGB", size[::-1]), {**target, **more}, "photo.jpg")


def certain(box: list[float], stride: int = 8, side: int = 64) -> Outputs:
    """Outputs whose one sure point, in the middle of a map, says ``dog`` in ``box`` (input pixels)."""
    cells = side // stride
    index = (cells // 2) * cells + cells // 2
    corners = torch.cartesian_prod(torch.arange(cells), torch.arange(cells)).flip(1).float() * stride
    anchors = torch.cat([corners, corners + stride], dim=1)
    centre = anchors[index, :2] + stride / 2
    distances = torch.zeros(1, cells**2, 4)
    distances[0, index] = torch.cat([centre - torch.tensor(box[:2]), torch.tensor(box[2:]) - centre]) / stride
    logits = torch.full((1, cells**2, 2), -20.0)
    logits[0, index, 1] = 20.0
    centerness = torch.full((1, cells**2, 1), 20.0)
    named = {"cls_logits": logits, "bbox_regression": distances, "bbox_ctrness": centerness}
    return Outputs(named, anchors, [cells**2], (side, side))


@pytest.mark.parametrize(
    ("fit", "size", "expected"),
    [
        ("stretch", (64, 64), [20, 24, 44, 60]),
        ("stretch", (128, 32), [10, 48, 22, 120]),
        ("pad", (32, 64), [20, 24, 44, 32]),
        ("pad", (128, 128), [40, 48, 88, 120]),
    ],
)
def test_predictions_are_in_the_coordinates_of_the_image(fit, size, expected):
    task = Detection(fit=fit, head_config={"width": 32, "convs": 1})
    (found,) = task.decode(task.head(INFO, CLASSES), certain([20, 24, 44, 60]), [{"size": size}])
    torch.testing.assert_close(found["boxes"], torch.tensor([expected], dtype=torch.float32))
    assert found["labels"].tolist() == [1]
    assert found["scores"].item() == pytest.approx(1.0)


@pytest.mark.parametrize("fit", ["stretch", "pad"])
def test_a_training_target_decodes_to_the_box_it_came_from(fit):
    task = Detection(fit=fit, augment="none", head_config={"width": 32, "convs": 1})
    box = [50.0, 20.0, 150.0, 80.0]
    _, moved = task.transform(CONFIG, train=True)(sample([box]))
    _, kept = task.transform(CONFIG, train=False)(sample([box]))
    assert kept["boxes"].tolist() == [box] and tuple(kept["size"]) == (100, 200)
    (found,) = task.decode(task.head(INFO, CLASSES), certain(moved["boxes"][0].tolist()), [kept])
    torch.testing.assert_close(found["boxes"][0], torch.tensor(box), atol=1e-3, rtol=0)


def test_predictions_carry_class_names_and_are_drawn_where_they_score():
    task = Detection()
    boxes = torch.tensor([[10.0, 10.0, 200.0, 200.0], [220.0, 220.0, 250.0, 250.0]])
    prediction = {"boxes": boxes, "scores": torch.tensor([0.75, 0.125]), "labels": torch.tensor([1, 0])}
    assert task.describe(prediction, CLASSES) == {
        "objects": [
            {"class": "dog", "score": 0.75, "box": [10.0, 10.0, 200.0, 200.0]},
            {"class": "cat", "score": 0.125, "box": [220.0, 220.0, 250.0, 250.0]},
        ]
    }
    drawn = np.asarray(task.draw(Image.new("RGB", (256, 256)), prediction, CLASSES))
    assert drawn.shape == (256, 256, 3)
    assert drawn[10:200, 10:200].any() and not drawn[205:, 205:].any()


@pytest.mark.parametrize(
    ("config", "message", "hint"),
    [
        ({"name": "fcoss"}, 'unknown head "fcoss"', 'did you mean "fcos"?'),
        ({"widht": 64}, 'head "fcos" has no setting "widht"', 'did you mean "width"?'),
        (
            {"width": "wide"},
            'fcos.width = "wide" does not fit: it should be a valid integer',
            "fcos.width takes a multiple of 32; the default is 64",
        ),
        ({"width": 48}, "fcos.width = 48 does not fit", "a multiple of 32"),
        ({"convs": 0}, "fcos.convs = 0 does not fit", "at least 1"),
        ({"strides": [8, "x"]}, 'fcos.strides = [8, "x"] does not fit', "a list, each a whole number of at least 1"),
        ({"strides": [12]}, "A feature map of stride 12 cannot be made from a backbone of stride 8.", "doubling"),
        ({"score_threshold": 1.0}, "fcos.score_threshold = 1.0 does not fit", "below 1"),
        ({"detections": -1}, "fcos.detections = -1 does not fit", "the default is 100"),
    ],
)
def test_head_settings_that_cannot_be_are_refused_with_a_hint(config, message, hint):
    with pytest.raises(UsageError) as caught:
        Detection(head_config=config).head(INFO, CLASSES)
    assert caught.value.message.startswith(message)
    assert hint in caught.value.hint


def test_head_settings_reach_the_head():
    config = {"name": "fcos", "width": 32, "strides": [16, 8], "convs": 1, "score_threshold": 0.5, "detections": 7}
    head = Detection(head_config=config).head(INFO, CLASSES)
    assert (head.pyramid.width, head.pyramid.strides) == (32, (8, 16))
    assert (head.detector.score_thresh, head.detector.detections_per_img) == (0.5, 7)
    assert sum(isinstance(module, nn.Conv2d) for module in head.detector.modules()) == 5


@pytest.mark.parametrize("box", [[5, 5, 5, 20], [9, 5, 3, 20], [5, 20, 9, 20], [float("nan"), 5, 9, 20]])
@pytest.mark.parametrize("train", [True, False])
def test_a_box_without_area_names_its_file(box, train):
    transform = Detection().transform(CONFIG, train=train)
    with pytest.raises(DataError, match=r"^photo\.jpg has a box without area: \[") as caught:
        transform(sample([[1, 1, 9, 9], box]))
    assert "x1 < x2" in caught.value.hint


def test_an_image_without_objects_or_without_targets_is_fine():
    transform = Detection().transform(CONFIG, train=True)
    assert transform(sample([]))[1]["boxes"].shape == (0, 4)
    bare = Sample(Image.new("RGB", (30, 20)), {}, "photo.jpg")
    assert "boxes" not in transform(bare)[1]


def test_the_embedded_data_are_scenes_of_digits():
    dataset = Detection().dataset("val")
    assert dataset.classes == tuple("0123456789")
    image, target = Detection().transform(CONFIG, train=False)(dataset[0])
    assert image.shape == (3, 64, 64)
    assert len(target["boxes"]) == len(target["labels"]) > 0


class Convolutions(nn.Module):
    """A small trained backbone of stride 8."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 32, 4, stride=4), nn.GELU(), nn.Conv2d(32, 64, 2, stride=2), nn.GroupNorm(8, 64), nn.GELU()
        )

    def forward(self, images) -> Features:
        map_ = self.layers(images)
        return Features(map_.mean((2, 3)), (map_,))


def test_it_learns_eight_scenes():
    torch.manual_seed(0)
    task = Detection(augment="none", head_config={"width": 32, "convs": 1})
    dataset = task.dataset("train")
    samples = [dataset[index] for index in range(8)]
    images, targets = task.collate([task.transform(CONFIG, train=True)(one) for one in samples])
    backbone, head = Convolutions(), task.head(FeaturesInfo(64, (64,), (8,), 0, (64, 64)), dataset.classes)
    optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], lr=5e-3)
    for _ in range(120):
        optimizer.zero_grad()
        sum(task.loss(head, head(backbone(images)), targets).values()).backward()
        optimizer.step()
    metric = task.metric(head.classes)
    metric.update(task.decode(head, head(backbone(images)), targets), targets)
    score = metric.compute()
    assert score.count == 8
    assert score.detail["AP50"] > 90
