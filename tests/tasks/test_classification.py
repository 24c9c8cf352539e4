"""Classification: heads that grow, names that join data and heads, accuracy from counts."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image

from mtpeft.api import DataError, Features, FeaturesInfo, ImageConfig, UsageError
from mtpeft_tasks.classification.heads import Cosine, Linear
from mtpeft_tasks.classification.metric import Accuracy
from mtpeft_tasks.classification.task import Classification

INFO = FeaturesInfo(pooled=6, channels=(6,), strides=(8,), prefix=1, image_size=(16, 16))


def features(count: int = 4) -> Features:
    generator = torch.Generator().manual_seed(1)
    return Features(torch.randn(count, 6, generator=generator), (torch.randn(count, 6, 2, 2, generator=generator),))


def target(name: str, names=("cat", "dog")) -> dict:
    return {"label": torch.tensor(names.index(name)), "classes": names, "size": (16, 16)}


@pytest.mark.parametrize("config", [{}, {"name": "linear"}, {"name": "cosine", "scale": 4.0}])
def test_extending_keeps_old_rows_bit_identical(config):
    head = Classification(head_config=config).head(INFO, ("cat", "dog"))
    before, rows = head(features()), {name: p.detach().clone() for name, p in head.named_parameters()}
    head.extend(("dog", "emu", "fox"))
    after = head(features())
    assert head.classes == ("cat", "dog", "emu", "fox") and after.shape == (4, 4)
    assert all(torch.equal(p[:2] if p.dim() else p, rows[name]) for name, p in head.named_parameters())
    assert torch.allclose(before, after[:, :2], atol=1e-6)
    assert all(parameter.requires_grad for parameter in head.parameters())


def test_every_head_tensor_gets_a_gradient():
    for head in (Linear(INFO, ("cat", "dog")), Cosine(INFO, ("cat", "dog"))):
        Classification().loss(head, head(features(1)), [target("dog")])["cross_entropy"].backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters())


def test_parameters_are_counted():
    assert sum(p.numel() for p in Linear(INFO, "abc").parameters()) == 3 * 6 + 3
    assert sum(p.numel() for p in Cosine(INFO, "abc").parameters()) == 3 * 6 + 1


def test_cosine_logits_are_bounded_by_the_scale():
    head = Cosine(INFO, ("cat", "dog"), scale=5.0, learn_scale=False)
    head.weight.data = features().pooled[:2] * 3
    logits = head(features())
    assert logits.abs().max() <= 5.0001 and torch.allclose(logits.diagonal()[:2], torch.tensor(5.0))
    assert not head.scale.requires_grad


def test_prototypes_are_class_means():
    head = Cosine(INFO, ("cat", "dog", "emu"))
    untouched = head.weight[2].clone()
    pooled = torch.nn.functional.normalize(features(5).pooled, dim=-1)
    head.set_prototypes(features(5).pooled, torch.tensor([0, 1, 0, 1, 1]))
    assert torch.allclose(head.weight[0], (pooled[0] + pooled[2]) / 2)
    assert torch.allclose(head.weight[1], (pooled[1] + pooled[3] + pooled[4]) / 3)
    assert torch.equal(head.weight[2], untouched)


def test_loss_maps_classes_by_name():
    """The head's order differs from the data's, and it knows more."""
    head = Linear(INFO, ("emu", "dog", "cat"))
    outputs = torch.log(torch.tensor([[0.1, 0.2, 0.7]]))
    loss = Classification().loss(head, outputs, [target("cat")])["cross_entropy"]
    assert loss.item() == pytest.approx(-math.log(0.7))


def test_label_smoothing():
    head = Linear(INFO, ("cat", "dog"))
    loss = Classification(label_smoothing=0.2).loss(head, torch.log(torch.tensor([[0.7, 0.3]])), [target("cat")])
    assert loss["cross_entropy"].item() == pytest.approx(-0.9 * math.log(0.7) - 0.1 * math.log(0.3))


def test_samples_without_a_label_do_not_count():
    head = Linear(INFO, ("cat", "dog"))
    outputs = torch.log(torch.tensor([[0.7, 0.3], [0.5, 0.5]])).requires_grad_()
    loss = Classification().loss(head, outputs, [target("cat"), {"size": (16, 16)}])["cross_entropy"]
    assert loss.item() == pytest.approx(-math.log(0.7))
    none = Classification().loss(head, outputs, [{}, {}])["cross_entropy"]
    none.backward()
    assert none.item() == 0 and outputs.grad.abs().sum() == 0


def test_a_class_that_the_head_does_not_know():
    with pytest.raises(DataError, match='class "dog"') as caught:
        Classification().loss(Linear(INFO, ("cat", "dot")), torch.zeros(1, 2), [target("dog")])
    assert 'did you mean "dot"' in caught.value.hint


def test_unknown_head_and_setting():
    with pytest.raises(UsageError, match='head "liner"') as caught:
        Classification(head_config={"name": "liner"}).head(INFO, "ab")
    assert 'did you mean "linear"' in caught.value.hint
    with pytest.raises(UsageError, match='setting "scael"') as caught:
        Classification(head_config={"name": "cosine", "scael": 3}).head(INFO, "ab")
    assert 'did you mean "scale"' in caught.value.hint


def test_accuracy_by_name_and_per_class():
    metric = Accuracy(("emu", "dog", "cat"))
    metric.update([{"label": 2}, {"label": 1}, {"label": 0}], [target("cat"), target("cat"), target("dog")])
    metric.update([{"label": 1}, {"label": 1}], [target("dog"), {}])
    score = metric.compute()
    assert score.value == 50.0 and score.count == 5
    assert score.detail == {"correct": 2, "total": 4, "per_class": {"cat": [1, 2], "dog": [1, 2]}}
    assert score.value == 100 * score.detail["correct"] / score.detail["total"]


def test_accuracy_of_nothing_is_undefined():
    assert Accuracy(("cat",)).compute().value is None


def test_decode_and_describe():
    task, classes = Classification(), ("cat", "dog", "emu")
    head = task.head(INFO, classes)
    [prediction] = task.decode(head, torch.log(torch.tensor([[0.2, 0.7, 0.1]])), [{"size": (8, 8)}])
    assert prediction["label"] == 1
    said = task.describe(prediction, classes)
    assert said["class"] == "dog" and said["probability"] == pytest.approx(0.7)
    assert list(said["top"]) == ["dog", "cat", "emu"]
    assert task.draw(Image.new("RGB", (64, 64)), prediction, classes).size == (256, 256)


def test_the_embedded_data_end_to_end():
    """A linear head on the raw pixels learns in a few steps: data, transform, loss and metric fit together."""
    torch.manual_seed(0)
    task = Classification(augment="none", classes=("0", "1"))
    image = ImageConfig((16, 16), (0.5,) * 3, (0.5,) * 3)
    data, transform = task.dataset("train"), task.transform(image, train=True)
    images, targets = task.collate([transform(data[index]) for index in range(64)])
    info = FeaturesInfo(768, (768,), (16,), 0, (16, 16))
    head = task.head(info, data.classes)
    optimizer = torch.optim.Adam(head.parameters(), 0.01)
    losses = []
    for _ in range(60):
        loss = task.loss(head, head(Features(images.flatten(1), ())), targets)["cross_entropy"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    metric = task.metric(head.classes)
    metric.update(task.decode(head, head(Features(images.flatten(1), ())), targets), targets)
    assert losses[-1] < 0.5 * losses[0] and metric.compute().value > 90
