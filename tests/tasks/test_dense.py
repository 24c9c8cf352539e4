"""What the dense task types share: losses over labelled pixels, outputs found by name, maps at the image's size."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from mtpeft.api import DataError, Features, FeaturesInfo, ImageConfig, UsageError
from mtpeft.cli import main
from mtpeft_tasks import digits
from mtpeft_tasks.dense import DenseTask, at_image_size, at_output_size, mean_where
from mtpeft_tasks.depth.task import DepthEstimation
from mtpeft_tasks.edges.task import EdgeDetection
from mtpeft_tasks.maps import NAMES
from mtpeft_tasks.names import heads_for
from mtpeft_tasks.normals.task import SurfaceNormals
from mtpeft_tasks.saliency.task import Saliency
from mtpeft_tasks.segmentation.heads import Linear

INFO = FeaturesInfo(pooled=6, channels=(6,), strides=(8,), prefix=1, image_size=(32, 48))
TASKS = [DepthEstimation(), SurfaceNormals(), SurfaceNormals(distance="cosine"), Saliency(), EdgeDetection()]
VOID = {"depth": float("nan"), "normals": 0.0, "saliency": 255, "edges": 255}


def ids(task: DenseTask) -> str:
    return task.gives


def target(task: DenseTask, size=(32, 48), seed=0) -> dict:
    """A random target, the upper half of it without labels."""
    generator = torch.Generator().manual_seed(seed)
    if task.gives in ("saliency", "edges"):
        values = torch.randint(0, 2, size, generator=generator).to(torch.uint8)
    else:
        values = torch.rand(*(() if task.gives == "depth" else (3,)), *size, generator=generator) + 0.1
    values[..., : size[0] // 2, :] = VOID[task.gives]
    return {task.gives: values, "size": size}


def outputs(task: DenseTask, count=1, seed=1) -> torch.Tensor:
    return torch.randn(count, len(task.names), 32, 48, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def total(task: DenseTask, given: torch.Tensor, targets: list[dict]) -> torch.Tensor:
    return sum(task.loss(Linear(INFO, task.names), given, targets).values())


@pytest.mark.parametrize("task", TASKS, ids=ids)
def test_pixels_without_a_label_cost_nothing(task):
    given = outputs(task)
    loss = total(task, given, [target(task)])
    loss.backward()
    assert loss > 0 and not given.grad[:, :, :16].any() and given.grad[:, :, 16:].any()
    other = given.detach().clone()
    other[:, :, :16] += 5
    assert torch.allclose(total(task, other, [target(task)]), loss)


@pytest.mark.parametrize("task", TASKS, ids=ids)
def test_a_batch_without_any_label_has_no_loss_and_no_gradient(task):
    given = outputs(task, 2)
    nothing = target(task)
    nothing[task.gives] = torch.full_like(nothing[task.gives], VOID[task.gives])
    loss = total(task, given, [nothing, {"size": (32, 48)}])
    loss.backward()
    assert loss == 0 and not given.grad.any()


@pytest.mark.parametrize("task", TASKS, ids=ids)
def test_samples_without_the_target_leave_the_loss_of_the_others(task):
    given = outputs(task, 3)
    alone = total(task, given[1:2], [target(task)])
    assert torch.allclose(total(task, given, [{}, target(task), {"depth of another task": 1}]), alone)


@pytest.mark.parametrize("task", TASKS, ids=ids)
def test_targets_of_the_images_own_size_are_brought_to_the_outputs(task):
    given, small = outputs(task), target(task)
    large = {task.gives: small[task.gives].repeat_interleave(3, -1).repeat_interleave(2, -2)}
    assert torch.allclose(total(task, given, [large]), total(task, given, [small]))


@pytest.mark.parametrize("task", TASKS, ids=ids)
def test_outputs_are_found_by_name_in_a_head_that_is_shared(task):
    given, order = outputs(task), (*reversed(task.names), "another")
    rows = torch.stack([given[:, task.names.index(name)] for name in order[:-1]] + [torch.full((1, 32, 48), 9.0)], 1)
    head = Linear(INFO, order)
    assert task.loss(head, rows, [target(task)]) == task.loss(Linear(INFO, task.names), given, [target(task)])
    same = [{"size": (32, 48)}]
    assert torch.equal(
        task.decode(head, rows, same)[0][task.gives],
        task.decode(Linear(INFO, task.names), given, same)[0][task.gives],
    )


def test_a_head_that_has_not_the_outputs():
    with pytest.raises(DataError, match='class "depth"'):
        DepthEstimation().decode(Linear(INFO, ("x", "y", "z")), torch.zeros(1, 3, 32, 48), [{"size": (32, 48)}])


@pytest.mark.parametrize("fit", ["stretch", "pad"])
@pytest.mark.parametrize("task", TASKS, ids=ids)
def test_predictions_are_at_the_images_own_size_and_can_be_told_and_drawn(task, fit):
    task = type(task)(fit=fit)
    [prediction] = task.decode(Linear(INFO, task.names), outputs(task), [{"size": (50, 60)}])
    values = prediction[task.gives]
    assert values.shape[-2:] == (50, 60) and values.isfinite().all() and not values.requires_grad
    assert task.describe(prediction, task.names)["size"] == [50, 60]
    assert task.draw(Image.new("RGB", (60, 50)), prediction, task.names).size == (300, 250)


def test_at_image_size_cuts_the_padding_off():
    rows = torch.zeros(1, 32, 48)
    rows[:, :, :38] = 1  # what a picture of 50 x 60 covers when it is fitted into 32 x 48
    assert torch.allclose(at_image_size(rows, (50, 60), "pad"), torch.ones(1, 50, 60))
    assert at_image_size(rows, (50, 60), "stretch").mean() < 0.9


def test_at_output_size_pads_with_what_is_missing():
    found = at_output_size(torch.ones(2, 50, 60), (32, 48), "pad", missing=0.0)
    assert found.shape == (2, 32, 48) and (found[..., :38] == 1).all() and not found[..., 38:].any()


def test_mean_where_counts_every_component():
    values = torch.tensor([[[[1.0, 2.0]], [[3.0, 100.0]]]])
    assert mean_where(torch.tensor([[[[True, False]]]]), values) == 2.0


@pytest.mark.parametrize("task", TASKS, ids=ids)
def test_one_embedded_scene_is_learned(task):
    """Raw 4 x 4 patches as features: the loss falls and the metric is better than the untrained head's."""
    torch.manual_seed(0)
    task = type(task)(augment="none")
    data = task.dataset("train")
    images, targets = task.collate([task.transform(ImageConfig((64, 64), (0.5,) * 3, (0.5,) * 3), train=True)(data[2])])
    patches = torch.nn.functional.pixel_unshuffle(images, 4)
    features = Features(patches.mean((2, 3)), (patches,))
    head = task.head(FeaturesInfo(48, (48,), (4,), 0, (64, 64)), data.classes)
    optimizer = torch.optim.Adam(head.parameters(), 0.05)

    def score() -> float:
        metric = task.metric(head.classes)
        metric.update(task.decode(head, head(features), targets), targets)
        return metric.compute().value * (1 if task.higher_is_better else -1)

    [first], before = task.loss(head, head(features), targets).values(), score()
    for _ in range(60):
        [loss] = task.loss(head, head(features), targets).values()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.8 * first and score() > before


def test_they_train_together_without_data(tmp_path, monkeypatch, capsys):
    for kind in NAMES:
        monkeypatch.setitem(digits.SCENES, kind, {"train": 32, "val": 8, "test": 8})
    flags = ["--method", "lora", "--steps", "2", "--out", str(tmp_path / "run"), "--quiet", "--json"]
    assert main(["train", "--tasks", ",".join(NAMES), *flags]) == 0
    results = json.loads(capsys.readouterr().out)
    assert {row["task"]: row["count"] for row in results["matrix"]} == dict.fromkeys(NAMES, 8)
    assert all(row["value"] is not None for row in results["matrix"])
    assert results["summary"]["average"] is None  # no mean over units that cannot be added


@pytest.mark.parametrize("name", heads_for("pixels"))
@pytest.mark.parametrize("task", TASKS, ids=ids)
def test_every_segmentation_head_serves(task, name):
    task = type(task)(head_config={"name": name})
    head = task.head(INFO, task.names)
    given = head(Features(torch.randn(2, 6), (torch.randn(2, 6, 4, 6),)))
    [loss] = task.loss(head, given, [target(task), {}]).values()
    loss.backward()
    assert loss.isfinite() and any(p.grad is not None and p.grad.any() for p in head.parameters())
    assert task.decode(head, given, [{"size": (50, 60)}] * 2)[1][task.gives].shape[-2:] == (50, 60)


def test_unknown_head():
    with pytest.raises(UsageError, match='head "dpt"'):
        DepthEstimation(head_config={"name": "dpt"}).head(INFO, ("depth",))
