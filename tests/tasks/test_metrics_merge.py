"""Every built-in metric, cut into shards at random and merged in any order, gives exactly the score of one pass."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtpeft.api import Metric, UsageError
from mtpeft.plugins import registry, resolve
from mtpeft_tasks.classification.metric import Accuracy, MeanAveragePrecision
from mtpeft_tasks.depth.metric import DepthError
from mtpeft_tasks.detection.average_precision import AveragePrecision
from mtpeft_tasks.edges.metric import DilatedF
from mtpeft_tasks.normals.metric import AngularError
from mtpeft_tasks.saliency.metric import MaxF
from mtpeft_tasks.segmentation.metric import MeanIoU

Pair = tuple[dict[str, Any], dict[str, Any]]
HEAD = ("cat", "dog", "owl", "emu")
OWN = (("dog", "cat"), ("owl", "yak"), ("emu", "ant", "cat"))  # some that the head lacks


def label(random: Random) -> Pair:
    probabilities = torch.rand(4).softmax(0)
    own = random.choice(OWN)
    return (
        {"label": int(probabilities.argmax()), "probabilities": probabilities},
        {"label": random.randrange(len(own)), "classes": own},
    )


def labels(random: Random) -> Pair:
    own = random.choice(OWN)
    shown = torch.tensor([i for i in range(len(own)) if random.random() < 0.5], dtype=torch.int64)
    return {"probabilities": torch.rand(4).mul(4).round() / 4}, {"labels": shown, "classes": own}


def boxes(random: Random) -> Pair:
    def some(count: int) -> torch.Tensor:
        corner = torch.randint(0, 9, (count, 2)).float()
        return torch.cat([corner, corner + torch.randint(4, 9, (count, 2))], 1)

    own, many, found = random.choice(OWN), random.randrange(4), random.randrange(4)
    target = {"boxes": some(many), "labels": torch.randint(0, len(own), (many,)), "classes": own}
    scores = torch.rand(found).mul(3).round() / 3
    return {"boxes": some(found), "labels": torch.randint(0, 4, (found,)), "scores": scores}, target


def mask(random: Random) -> Pair:
    own = random.choice(OWN)
    target = torch.randint(0, len(own), (6, 5))
    target[0, 0] = 255
    return {"mask": torch.randint(0, 4, (6, 5))}, {"mask": target, "classes": own}


def depth(random: Random) -> Pair:
    return {"depth": torch.rand(6, 5) + 0.1}, {"depth": torch.rand(6, 5).mul(3).round()}


def normals(random: Random) -> Pair:
    return {"normals": torch.randn(3, 6, 5)}, {"normals": torch.randn(3, 6, 5)}


def edges(random: Random) -> Pair:
    return {"edges": torch.rand(6, 5)}, {"edges": torch.randint(0, 2, (6, 5)).float()}


def saliency(random: Random) -> Pair:
    return {"saliency": torch.rand(6, 5)}, {"saliency": torch.randint(0, 2, (6, 5)).float()}


METRICS: dict[str, tuple[Callable[[], Metric], Callable[[Random], Pair]]] = {
    "cls": (lambda: Accuracy(HEAD), label),
    "multi-label": (lambda: MeanAveragePrecision(HEAD), labels),
    "det": (lambda: AveragePrecision(HEAD), boxes),
    "seg": (lambda: MeanIoU(HEAD), mask),
    "depth": (DepthError, depth),
    "normals": (AngularError, normals),
    "edges": (lambda: DilatedF(0.1, 0.95), edges),
    "saliency": (MaxF, saliency),
}


def seen(make: Callable[[], Metric], pairs: list[Pair]) -> Metric:
    metric = make()
    for prediction, target in pairs:
        metric.update([prediction], [target])
    return metric


def test_every_task_type_is_here() -> None:
    assert {type(make()) for make, _ in METRICS.values()} == {
        type(resolve("tasks", name)().metric(HEAD)) for name in registry("tasks")
    }


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), owners=st.lists(st.integers(0, 3), max_size=9), random=st.randoms())
def test_merged_shards_are_one_pass(name: str, seed: int, owners: list[int], random: Random) -> None:
    make, sample = METRICS[name]
    torch.manual_seed(seed)
    generator = Random(seed)
    pairs = [sample(generator) for _ in owners]
    pairs = [(p, t if generator.random() < 0.8 else {}) for p, t in pairs]  # targets may be missing
    shards = [seen(make, [pair for pair, owner in zip(pairs, owners, strict=True) if owner == o]) for o in range(4)]
    random.shuffle(shards)
    merged, *others = shards
    for other in others:
        merged.merge(other)
    whole = seen(make, pairs).compute()
    assert merged.compute() == whole
    whole.check()


@pytest.mark.parametrize("name", ["cls", "multi-label", "det", "seg"])
def test_metrics_of_other_classes_are_not_merged(name: str) -> None:
    one, other = METRICS[name][0](), METRICS[name][0]()
    other.classes = HEAD[::-1]
    with pytest.raises(UsageError, match='the first to differ being "cat"'):
        one.merge(other)


def test_top_1_among_a_tasks_own_classes_is_beside_top_1_among_all() -> None:
    metric = Accuracy(("cat", "dog", "owl"))
    rows = [([0.1, 0.3, 0.6], "dog"), ([0.2, 0.5, 0.3], "dog"), ([0.3, 0.1, 0.6], "dog")]
    for probabilities, name in rows:
        row = torch.tensor(probabilities)
        target = {"label": ("cat", "dog").index(name), "classes": ("cat", "dog")}
        metric.update([{"label": int(row.argmax()), "probabilities": row}], [target])
    score = metric.compute()
    assert (score.detail["correct"], score.detail["total"]) == (1, 3)
    assert score.task_aware is not None
    assert (score.task_aware.detail["correct"], score.task_aware.detail["total"]) == (2, 3)
    assert score.task_aware.value == pytest.approx(200 / 3)


def test_a_head_of_its_own_has_no_second_score() -> None:
    metric = Accuracy(("cat", "dog"))
    metric.update([{"label": 0, "probabilities": torch.tensor([0.9, 0.1])}], [{"label": 1, "classes": ("dog", "cat")}])
    score = metric.compute()
    assert (score.value, score.task_aware) == (100.0, None)
