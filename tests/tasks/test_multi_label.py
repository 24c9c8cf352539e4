"""Several labels for each image: loss and mean average precision in closed form, by name, and where nothing is said."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from mtpeft.api import DataError, Features, FeaturesInfo, ImageConfig
from mtpeft_tasks.classification.heads import Linear
from mtpeft_tasks.classification.metric import MeanAveragePrecision
from mtpeft_tasks.classification.multi_label import MultiLabel

INFO = FeaturesInfo(pooled=6, channels=(6,), strides=(8,), prefix=1, image_size=(16, 16))
NAMES = ("cat", "dog", "emu")


def target(*shown: str, names: tuple[str, ...] = NAMES) -> dict:
    return {"labels": torch.tensor([names.index(name) for name in shown], dtype=torch.int64), "classes": names}


def logit(*probabilities: float) -> Tensor:
    return torch.logit(torch.tensor([probabilities]))


def loss(classes, outputs: Tensor, *targets: dict) -> Tensor:
    return MultiLabel().loss(Linear(INFO, classes), outputs, list(targets))["binary_cross_entropy"]


def test_the_loss_is_the_mean_of_each_class():
    expected = -(math.log(0.9) + math.log(0.8) + math.log(0.3)) / 3
    assert loss(NAMES, logit(0.9, 0.8, 0.7), target("cat", "dog")).item() == pytest.approx(expected)
    assert loss(NAMES, logit(0.1, 0.2, 0.3), target()).item() == pytest.approx(-math.log(0.9 * 0.8 * 0.7) / 3)


def test_the_loss_maps_classes_by_name_and_asks_only_for_those_of_the_target():
    outputs = logit(0.2, 0.9, 0.6).requires_grad_()
    found = loss(("emu", "cat", "dog"), outputs, target("cat", names=("dog", "cat")))
    assert found.item() == pytest.approx(-(math.log(0.9) + math.log(0.4)) / 2)
    found.backward()
    assert outputs.grad[0, 0] == 0 and (outputs.grad[0, 1:] != 0).all()


def test_samples_without_labels_do_not_count():
    outputs = torch.cat([logit(0.9, 0.8, 0.7), logit(0.5, 0.5, 0.5)]).requires_grad_()
    alone = loss(NAMES, outputs[:1], target("cat"))
    assert loss(NAMES, outputs, target("cat"), {"classes": NAMES}).item() == pytest.approx(alone.item())
    none = loss(NAMES, outputs, {}, {})
    none.backward()
    assert none.item() == 0 and not outputs.grad.any()


def test_a_class_that_the_head_does_not_know():
    with pytest.raises(DataError, match='class "emu"'):
        loss(("cat", "dog"), logit(0.5, 0.5), target("cat"))


def score(rows: list[tuple[list[float], dict]], classes=NAMES):
    metric = MeanAveragePrecision(classes)
    metric.update([{"probabilities": torch.tensor(row)} for row, _ in rows], [shown for _, shown in rows])
    return metric.compute()


def test_average_precision_in_closed_form():
    """Ranked by score, hits at places 1 and 3: (1/1 + 2/3) / 2; a tie of a hit and a miss is one step of 1/2."""
    rows = [
        ([0.9, 0.5, 0.1], target("cat")),
        ([0.8, 0.5, 0.2], target("dog")),
        ([0.7, 0.1, 0.3], target("cat")),
    ]
    found = score(rows)
    assert found.detail["per_class"] == {"cat": pytest.approx(100 * 5 / 6), "dog": pytest.approx(50.0), "emu": None}
    assert found.detail["positives"] == {"cat": 2, "dog": 1, "emu": 0}
    assert found.value == pytest.approx((100 * 5 / 6 + 50) / 2) and found.count == 3


def test_undefined_unknown_and_unsaid():
    assert score([]).value is None and score([([0.9, 0.5, 0.1], target())]).value is None
    nothing = score([([0.9, 0.5, 0.1], {})])
    assert nothing.value is None and nothing.count == 1
    lacking = score([([0.9], target("cat", "dog"))], classes=("cat",))
    assert lacking.detail["per_class"] == {"cat": 100.0, "dog": 0.0, "emu": None} and lacking.value == 50.0
    rows = [([0.1, 0.9], target("a", names=("a",))), ([0.9, 0.1], target("b", names=("b",)))]
    assert score(rows, classes=("a", "b")).detail["per_class"] == {"a": 100.0, "b": 100.0}


SCORES = st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=12)


@given(SCORES, st.randoms())
def test_no_order_matters_and_the_value_is_the_sum_of_its_steps(drawn, random):
    rows = [([value / 4], target(*(["cat"] if shown else []), names=("cat",))) for value, shown in drawn]
    shuffled = random.sample(rows, len(rows))
    found = score(rows, ("cat",))
    assert score(shuffled, ("cat",)) == found
    positives, expected, before = sum(shown for _, shown in drawn), 0.0, 0
    for step in range(4, -1, -1):
        above = [shown for value, shown in drawn if value >= step]
        expected += (sum(above) - before) * sum(above) / max(len(above), 1) / max(positives, 1)
        before = sum(above)
    assert found.value == (pytest.approx(100 * expected) if positives else None)


def test_predictions_are_every_class_from_the_threshold_on():
    task = MultiLabel(threshold=0.4)
    outputs = torch.cat([logit(0.4001, 0.9, 0.1), logit(0.1, 0.2, 0.3)])
    some, none = task.decode(task.head(INFO, NAMES), outputs, [{}, {}])
    assert some["labels"].tolist() == [1, 0] and none["labels"].tolist() == []
    said = task.describe(some, NAMES)
    assert list(said["classes"]) == ["dog", "cat"] and list(said["top"]) == ["dog", "cat", "emu"]
    assert said["classes"]["dog"] == pytest.approx(0.9, abs=1e-6) and task.describe(none, NAMES)["classes"] == {}
    for prediction in (some, none):
        assert task.draw(Image.new("RGB", (64, 64)), prediction, NAMES).size == (256, 256)


def test_the_embedded_scenes_are_learned():
    """A linear head on the raw pixels learns which of two digits a scene shows: data, loss and metric fit together."""
    torch.manual_seed(0)
    task = MultiLabel(augment="none", classes=("0", "1"))
    transform = task.transform(ImageConfig((16, 16), (0.5,) * 3, (0.5,) * 3), train=True)
    data = task.dataset("train")
    images, targets = task.collate([transform(data[index]) for index in range(48)])
    head = task.head(FeaturesInfo(768, (768,), (16,), 0, (16, 16)), data.classes)
    optimizer = torch.optim.Adam(head.parameters(), 0.01)
    losses = []
    for _ in range(80):
        outputs = head(Features(images.flatten(1), ()))
        losses.append(task.loss(head, outputs, targets)["binary_cross_entropy"])
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    metric = task.metric(head.classes)
    metric.update(task.decode(head, head(Features(images.flatten(1), ())), targets), targets)
    assert losses[-1] < 0.5 * losses[0] and metric.compute().value > 95
