"""UPerNet, SETR-PUP and the mask transformer: shapes, growth, independence of samples, and that they learn."""

from __future__ import annotations

import pytest
import torch
from support.segmentation_toys import COARSE, NAMES, PYRAMID, VIT, every_info, features, target
from torch.nn import functional as F

import mtpeft
from mtpeft.api import Features, ImageConfig, UsageError
from mtpeft.backbone.extract import Extractor
from mtpeft.backbone.micro import micro
from mtpeft.testing import check_task
from mtpeft.testing.zoo import zoo
from mtpeft_tasks.names import heads_for
from mtpeft_tasks.segmentation.mask_transformer import MaskTransformer
from mtpeft_tasks.segmentation.pixels import OneMap
from mtpeft_tasks.segmentation.setr_pup import SETRPUP
from mtpeft_tasks.segmentation.task import Segmentation
from mtpeft_tasks.segmentation.upernet import PyramidPool, UPerNet

NEW = [name for name in heads_for("pixels") if name != "linear"]
every_head = pytest.mark.parametrize("name", NEW)


def made(name, info=VIT, classes=NAMES, **settings):
    torch.manual_seed(0)
    return Segmentation(head_config={"name": name, "width": 32} | settings).head(info, classes)


def count(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@every_head
def test_the_kit_passes(name):
    check_task(Segmentation(head_config={"name": name, "width": 32}))


@every_head
@every_info
def test_logits_have_the_size_of_the_input(name, info):
    assert made(name, info)(features(info)).shape == (2, 3, *info.image_size)


@every_head
@every_info
def test_neither_the_mode_nor_the_rest_of_the_batch_matters(name, info):
    head, batch = made(name, info), features(info, 3)
    together = head.train()(batch)
    torch.testing.assert_close(head.eval()(batch), together)
    torch.testing.assert_close(head(batch[1:2]), together[1:2])


@every_head
@every_info
def test_every_tensor_gets_a_gradient(name, info):
    head = made(name, info)
    mask = torch.arange(info.image_size[1]).expand(info.image_size) % 3
    Segmentation().loss(head, head(features(info, 1)), [target(mask)])["cross_entropy"].backward()
    dead = [key for key, parameter in head.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert dead == []


@every_head
@every_info
def test_extending_keeps_old_rows_bit_identical(name, info):
    head = made(name, info)
    before, rows = head(features(info)), {key: p.detach().clone() for key, p in head.named_parameters()}
    head.extend(("background", "c", "c", "d"))
    after = head(features(info))
    assert head.classes == (*NAMES, "c", "d") and after.shape[1] == 5
    assert all(torch.equal(p[: len(rows[key])] if p.ndim else p, rows[key]) for key, p in head.named_parameters())
    grown = {key for key, p in head.named_parameters() if p.shape != rows[key].shape}
    assert grown == {"weight", "bias"}
    if name != "mask-transformer":  # whose class tokens see each other
        torch.testing.assert_close(after[:, :3], before)


@every_head
def test_the_order_of_the_classes_in_the_data_does_not_matter(name):
    head, task = made(name), Segmentation()
    outputs, mask = head(features(VIT, 1)), torch.randint(0, 3, (32, 48))
    turned = target((mask + 1) % 3, ("b", "background", "a"))
    assert task.loss(head, outputs, [turned]) == task.loss(head, outputs, [target(mask)])


@every_head
def test_a_grown_head_is_saved_and_comes_back(name, tmp_path):
    spec = mtpeft.head("seg", NAMES, head_config={"name": name, "width": 32})
    host = mtpeft.adapt(zoo()["vit-gap"](), "lora", {"one": spec}).eval()
    host.head_of("one").extend(["c"])
    host.save(tmp_path / "adapter")
    again = mtpeft.load(tmp_path / "adapter", zoo()["vit-gap"]()).eval()
    assert again.head_of("one").classes == (*NAMES, "c")
    images = torch.randn(2, 3, *host.image_size)
    with torch.no_grad():
        assert torch.equal(host.predict(images, "one"), again.predict(images, "one"))


@every_head
@pytest.mark.parametrize("family", ["vit", "vit-gap", "swin", "hiera", "convnext", "resnet"])
def test_it_runs_on_every_kind_of_backbone(name, family):
    model = zoo()[family]()
    size = (64, 96) if family in ("convnext", "resnet") else tuple(model.pretrained_cfg["input_size"][1:])
    extractor = Extractor(model, size)
    head, task = made(name, extractor.info(model)), Segmentation(fit="pad")
    with torch.no_grad():
        outputs = head(extractor(model, torch.randn(2, 3, *size)))
    assert outputs.shape == (2, 3, *size) and outputs.isfinite().all()
    (mask, _) = (found["mask"] for found in task.decode(head, outputs, [{"size": (50, 60)}] * 2))
    assert mask.shape == (50, 60) and mask.dtype == torch.uint8


def test_one_map_adds_the_maps_on_the_finest_grid():
    one, batch = OneMap(PYRAMID, 5, 8), features(PYRAMID)
    assert (one.stride, one.maps) == (8, [1, 2, 3])
    expected = 0
    for projection, map_ in zip(one.projections, batch.maps[1:], strict=True):
        cells = F.layer_norm(map_.permute(0, 2, 3, 1), map_.shape[1:2])
        cells = F.linear(cells, projection[1].weight[:, :, 0, 0], projection[1].bias).permute(0, 3, 1, 2)
        expected = expected + F.interpolate(cells, (8, 12), mode="bilinear")
    torch.testing.assert_close(one(batch), expected, atol=1e-4, rtol=1e-4)
    assert OneMap(VIT, 5, 64).maps == [0]


def test_the_steps_of_setr_end_at_two_or_four_pixels():
    assert [len(SETRPUP(info, NAMES).stages) for info in (VIT, COARSE, PYRAMID)] == [2, 2, 2]
    assert len(SETRPUP(VIT, NAMES, steps=1).stages) == 1
    grid = SETRPUP(COARSE, NAMES, width=8).stages(torch.randn(1, 8, 10, 6))
    assert grid.shape == (1, 8, 40, 24)


def test_parameters_are_counted():
    convolution = 9 * 8 * 8 + 2 * 8
    assert count(SETRPUP(VIT, NAMES, width=8)) == 2 * 6 + 7 * 8 + 2 * convolution + 3 * 9
    block = 12 * 32**2 + 13 * 32
    parts = 33 * 4**2 * 16 + 33 * 16
    assert count(MaskTransformer(VIT, NAMES, width=32)) == 2 * 6 + 7 * 32 + 2 * block + 64 + parts + 1 + 3 * 33


def test_pyramid_pooling_sees_the_mean_of_everything():
    """A far corner changes every cell, through the means over the map, and a map of two cells has two grids."""
    pool, one = PyramidPool(4, 8, 6), torch.randn(1, 4, 12, 12)
    other = one.clone()
    other[..., -1, -1] += torch.arange(4.0)
    assert (pool(one) != pool(other)).any(1).all()
    assert [PyramidPool(4, 8, cells).bins for cells in (1, 2, 5, 6)] == [[1], [1, 2], [1, 2, 3], [1, 2, 3, 6]]


def test_upernet_reads_every_map():
    head, one = UPerNet(PYRAMID, NAMES, width=8), features(PYRAMID)
    for index in range(4):
        maps = [map_ + (position == index) * torch.randn_like(map_) for position, map_ in enumerate(one.maps)]
        assert not torch.allclose(head(Features(one.pooled, tuple(maps))), head(one))
    assert head.pyramid is None and UPerNet(VIT, NAMES).pyramid.strides == (4, 8, 16)


def test_the_logits_of_the_mask_transformer_are_scaled_cosines():
    head = MaskTransformer(VIT, NAMES, width=32)
    torch.nn.init.normal_(head.weight)
    assert head(features(VIT)).abs().max() <= 10
    with torch.no_grad():
        head.scale.zero_()
        head.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(head(features(VIT)), torch.tensor([1.0, 2, 3])[:, None, None].expand(2, 3, 32, 48))


def test_a_cell_of_the_mask_transformer_has_its_parts_in_their_places():
    """Told apart by place alone: part (i, j) of a cell lies i down and j right of its corner."""
    head = MaskTransformer(VIT, ("a", "b"), width=32, upscale=8)
    with torch.no_grad():
        head.mixed.of_cell.weight.zero_()
        head.of_class.weight.zero_()
        head.of_class.bias.copy_(F.one_hot(torch.tensor(0), 16).float())
        parts = torch.zeros(64, 16)
        parts[:, 1] = 1.0
        parts[8 * 2 + 5] = F.one_hot(torch.tensor(0), 16).float()
        head.mixed.of_cell.bias.copy_(parts.T.flatten())
    logits = head(features(VIT, 1))[0, 0]
    expected = torch.zeros(32, 48)
    expected[2::8, 5::8] = 10.0
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize(
    ("config", "message", "hint"),
    [
        ({"name": "mask-transformer", "width": 48}, "mask-transformer.width = 48 does not fit", "multiple of 32"),
        ({"name": "mask-transformer", "layers": 0}, "mask-transformer.layers = 0 does not fit", "default is 2"),
        ({"name": "setr-pup", "steps": -1}, "setr-pup.steps = -1 does not fit", "at least 0"),
        ({"name": "upernet", "width": "64"}, 'upernet.width = "64" does not fit', "a whole number"),
        ({"name": "upernet", "widht": 64}, 'head "upernet" has no setting "widht"', 'did you mean "width"?'),
        ({"dropout": 1.0}, "linear.dropout = 1.0 does not fit", "below 1"),
        ({"name": "setr"}, 'unknown head "setr"', 'did you mean "setr-pup"?'),
    ],
)
def test_settings_that_cannot_be_are_refused_with_a_hint(config, message, hint):
    with pytest.raises(UsageError) as caught:
        Segmentation(head_config=config).head(VIT, NAMES)
    assert caught.value.message.startswith(message)
    assert hint in caught.value.hint


@pytest.mark.parametrize("name", heads_for("pixels", "seg"))
def test_it_learns_four_scenes_from_frozen_features(name):
    torch.manual_seed(0)
    task = Segmentation(augment="none", head_config={"name": name, "width": 64})
    dataset, model = task.dataset("train"), micro().eval()
    extractor = Extractor(model, (64, 64))
    transform = task.transform(ImageConfig((64, 64), (0.5,) * 3, (0.5,) * 3), train=True)
    images, targets = task.collate([transform(dataset[index]) for index in range(4)])
    with torch.no_grad():
        found = extractor(model, images)
    head = task.head(extractor.info(model), dataset.classes)
    optimizer = torch.optim.AdamW(head.parameters(), lr=2e-3)
    for _ in range(100):
        optimizer.zero_grad()
        sum(task.loss(head, head(found), targets).values()).backward()
        optimizer.step()
    metric = task.metric(head.classes)
    metric.update(task.decode(head, head(found), targets), targets)
    assert metric.compute().value > 60
