"""What every detection head promises: a loss per image, no chance, names, growth, saving, every kind of backbone."""

from __future__ import annotations

import pytest
import torch
from support.detection_toys import CLASSES, HIERARCHICAL, PLAIN, TARGETS, WIDE, features, target

import mtpeft
from mtpeft.api import DataError, UsageError
from mtpeft.backbone.extract import Extractor
from mtpeft.backbone.micro import micro
from mtpeft.testing import check_task
from mtpeft.testing.zoo import zoo
from mtpeft_tasks.detection.task import Detection
from mtpeft_tasks.names import heads_for

every_head = pytest.mark.parametrize("name", heads_for("det"))
two_looks = pytest.mark.parametrize("name", ["retinanet", "faster-rcnn"])
every_info = pytest.mark.parametrize("info", [PLAIN, WIDE, HIERARCHICAL], ids=["plain", "wide", "hierarchical"])
ROWS = {
    "retinanet": "detector.head.classification_head.cls_logits.weight",
    "faster-rcnn": "look.box_predictor.cls_score.weight",
}


def made(name, info=PLAIN, classes=CLASSES, **settings):
    torch.manual_seed(0)
    config = {"name": name, "width": 32} | ({"proposals": 16} if name == "faster-rcnn" else {"convs": 1}) | settings
    return Detection(head_config=config).head(info, classes)


def lively(head):
    """With weights that make its scores differ."""
    for parameter_name, parameter in head.named_parameters():
        if parameter.ndim > 1 and not parameter_name.startswith("pyramid"):
            torch.nn.init.normal_(parameter, std=0.1)
        elif parameter_name.endswith("cls_logits.bias"):
            torch.nn.init.zeros_(parameter)
    return head


def same(found, other):
    assert len(found["boxes"]) == len(other["boxes"]) > 0
    for key in found:
        torch.testing.assert_close(found[key], other[key], atol=1e-4, rtol=1e-4)


@every_head
def test_the_kit_passes(name):
    check_task(Detection(head_config={"name": name, "width": 32}))


@every_head
@every_info
def test_a_loss_over_a_batch_is_the_mean_over_its_parts(name, info):
    head, batch = lively(made(name, info)), features(info)
    whole = head.loss(head(batch), TARGETS)
    parts = [head.loss(head(batch[i : i + 1]), TARGETS[i : i + 1]) for i in range(3)]
    for key, value in whole.items():
        torch.testing.assert_close(value, torch.stack([part[key] for part in parts]).mean())


@every_head
@every_info
def test_neither_the_mode_nor_the_rest_of_the_batch_matters(name, info):
    head, batch = lively(made(name, info)), features(info)
    together = head.train().detect(head(batch))
    still = head.eval().detect(head(batch))
    for index in range(3):
        alone = head.detect(head(batch[index : index + 1]))[0]
        same(together[index], alone)
        assert all(torch.equal(still[index][key], value) for key, value in together[index].items())


@every_head
def test_nothing_is_left_to_chance(name):
    head, batch = lively(made(name)), features(PLAIN)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    losses = head.loss(head(batch), TARGETS)
    head.detect(head(batch))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert head.loss(head(batch), TARGETS) == losses


@every_head
def test_detections_lie_in_the_image_best_first(name):
    head = lively(made(name, WIDE, detections=9))
    for found in head.detect(head(features(WIDE))):
        assert found["boxes"].shape == (9, 4) and found["boxes"].min() >= 0
        assert (found["boxes"] <= torch.tensor([96, 48, 96, 48])).all()
        assert (found["scores"].diff() <= 0).all()
        assert set(found["labels"].tolist()) <= {0, 1, 2}


@two_looks
def test_no_object_gives_finite_losses_and_samples_without_boxes_none(name):
    head, batch = made(name), features(PLAIN)
    empty = head.loss(head(batch), [target([], [])] * 3)
    assert empty["regression"] == 0 and empty["classification"] > 0
    sum(empty.values()).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())
    unlabelled = sum(head.loss(head(batch), [{}] * 3).values())
    assert unlabelled == 0 and unlabelled.requires_grad
    some = head.loss(head(batch), [{}, TARGETS[0], {}])
    torch.testing.assert_close(some, head.loss(head(batch[1:2]), TARGETS[:1]))


@two_looks
def test_labels_are_matched_by_name(name):
    head, batch = made(name), features(PLAIN, batch=1)
    renamed = {**TARGETS[0], "labels": torch.tensor([1, 0]), "classes": ("owl", "cat")}
    assert head.loss(head(batch), [renamed]) == head.loss(head(batch), TARGETS[:1])
    with pytest.raises(DataError, match="wolf"):
        head.loss(head(batch), [{**TARGETS[0], "classes": ("wolf", "dog", "owl")}])


@two_looks
def test_extending_leaves_every_known_row_bit_identical(name):
    head, batch = made(name), features(PLAIN)
    before, state = head(batch), {key: value.clone() for key, value in head.state_dict().items()}
    head.extend(["owl", "eel", "eel", "fox"])
    assert head.classes == ("cat", "dog", "owl", "eel", "fox")
    for key, value in head.state_dict().items():
        assert torch.equal(value[: len(state[key])], state[key])
    after = head(batch)
    torch.testing.assert_close(after.named["bbox_regression"], before.named["bbox_regression"])
    sum(head.loss(after, [target([[2, 3, 30, 40]], [0], ("fox",))] * 3).values()).backward()
    assert dict(head.named_parameters())[ROWS[name]].grad[-1].abs().max() > 0


def test_a_grown_retinanet_scores_known_classes_as_before():
    head, batch = made("retinanet"), features(PLAIN)
    before = head(batch).named["cls_logits"]
    head.extend(["eel", "fox"])
    after = head(batch).named["cls_logits"]
    assert after.shape[-1] == 5
    torch.testing.assert_close(after[..., :3], before)
    assert after[..., 3:].detach().sigmoid().mean() == pytest.approx(0.01, abs=0.003)


@two_looks
def test_a_grown_head_is_saved_and_comes_back(name, tmp_path):
    spec = mtpeft.head("det", CLASSES, head_config={"name": name, "width": 32})
    host = mtpeft.adapt(zoo()["vit-gap"](), "lora", {"one": spec}).eval()
    lively(host.head_of("one")).extend(["eel"])
    host.save(tmp_path / "adapter")
    again = mtpeft.load(tmp_path / "adapter", zoo()["vit-gap"]()).eval()
    assert again.head_of("one").classes == (*CLASSES, "eel")
    images = torch.randn(2, 3, *host.image_size)
    with torch.no_grad():
        pairs = zip(*(h.head_of("one").detect(h.predict(images, "one")) for h in (host, again)), strict=True)
    for one, other in pairs:
        assert len(one["boxes"]) > 0 and all(torch.equal(one[key], other[key]) for key in one)


@two_looks
@pytest.mark.parametrize("family", ["vit", "vit-gap", "swin", "hiera", "convnext", "resnet"])
def test_it_trains_on_every_kind_of_backbone(name, family):
    model = zoo()[family]()
    free = family in ("convnext", "resnet")
    size = (64, 96) if free else model.pretrained_cfg["input_size"][1:]
    extractor = Extractor(model, size)
    head = made(name, extractor.info(model))
    with torch.no_grad():
        found = extractor(model, torch.randn(2, 3, *size))
    outputs = head(found)
    assert outputs.image_size == tuple(size)
    sum(head.loss(outputs, [target([[4, 6, 20, 28]], [1]), target([], [])]).values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    (first, _) = Detection(fit="pad").decode(head, head(found), [{"size": (50, 60)}] * 2)
    assert first.keys() == {"boxes", "scores", "labels"}


@pytest.mark.parametrize(
    ("config", "message", "hint"),
    [
        ({"name": "retinanet", "convs": 5}, "retinanet.convs = 5 does not fit", "from 1 to 4"),
        ({"name": "retinanet", "scales": -1}, "retinanet.scales = -1 does not fit", "default is 0"),
        ({"name": "retinanet", "proposals": 9}, 'head "retinanet" has no setting "proposals"', "scales"),
        ({"name": "faster-rcnn", "hidden": 0}, "faster-rcnn.hidden = 0 does not fit", "at least 1"),
        ({"name": "faster-rcnn", "width": 48}, "faster-rcnn.width = 48 does not fit", "a multiple of 32"),
        ({"name": "faster-rcnn", "strides": [12]}, "A feature map of stride 12 cannot be made", "doubling"),
        ({"name": "rcnn"}, 'unknown head "rcnn"', "faster-rcnn"),
        ({"name": ["fcos"]}, "unknown head \"['fcos']\"", "fcos"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_a_hint(config, message, hint):
    with pytest.raises(UsageError) as caught:
        Detection(head_config=config).head(PLAIN, CLASSES)
    assert caught.value.message.startswith(message)
    assert hint in caught.value.hint


@two_looks
def test_bfloat16_features_give_float_losses(name):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        head = made(name)
        outputs = head(features(PLAIN))
        losses = head.loss(outputs, TARGETS)
    assert {value.dtype for value in [*outputs.named.values(), *losses.values()]} == {torch.float32}
    assert len(head.detect(outputs)) == 3


@two_looks
def test_it_learns_four_scenes_from_frozen_features(name):
    torch.manual_seed(0)
    task = Detection(augment="none", head_config={"name": name, "width": 32})
    dataset, model = task.dataset("train"), micro().eval()
    extractor = Extractor(model, (64, 64))
    transform = task.transform(mtpeft.api.ImageConfig((64, 64), (0.5,) * 3, (0.5,) * 3), train=True)
    batch, targets = task.collate([transform(dataset[index]) for index in range(4)])
    with torch.no_grad():
        found = extractor(model, batch)
    head = task.head(extractor.info(model), dataset.classes)
    optimizer = torch.optim.AdamW(head.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        sum(task.loss(head, head(found), targets).values()).backward()
        optimizer.step()
    metric = task.metric(head.classes)
    metric.update(task.decode(head, head(found), targets), targets)
    assert metric.compute().detail["AP50"] > 75
