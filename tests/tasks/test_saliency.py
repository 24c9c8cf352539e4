"""Saliency: the best F-measure over thresholds from counts, and a cross-entropy in which both sides weigh alike."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import softplus

from mtpeft_tasks.saliency.metric import BETA_SQUARED, THRESHOLDS, MaxF, above, f_measure
from mtpeft_tasks.saliency.task import Saliency


def scored(*pairs):
    metric = MaxF()
    for predicted, actual in pairs:
        predicted = torch.tensor(predicted)
        metric.update([{"saliency": predicted}], [{} if actual is None else {"saliency": torch.tensor(actual)}])
    return metric.compute()


def random_pairs(seed: int, count: int = 5) -> list:
    generator = torch.Generator().manual_seed(seed)
    draw = [
        (torch.rand(6, 7, generator=generator), torch.randint(0, 3, (6, 7), generator=generator)) for _ in range(count)
    ]
    return [(values.tolist(), torch.where(mask == 2, 255, mask).tolist()) for values, mask in draw]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=30))
def test_how_many_reach_each_threshold(values):
    given = torch.tensor(values, dtype=torch.float64)
    assert above(given, THRESHOLDS).tolist() == [sum(value >= limit for value in values) for limit in THRESHOLDS]


def test_f_measure_is_what_precision_and_recall_give():
    precision, recall = 6 / 8, 6 / 15
    expected = (1 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall)
    assert f_measure(torch.tensor([6]), torch.tensor([8]), 15, BETA_SQUARED).item() == pytest.approx(expected)


def test_the_best_threshold_against_hand_counts():
    score = scored(([[0.9, 0.6, 0.6, 0.1]], [[1, 1, 0, 0]]), ([[0.3, 0.9]], [[0, 255]]))
    at_six = 1.3 * 2 / (3 + 0.3 * 2)  # all that is salient, and one pixel more
    at_nine = 1.3 * 1 / (1 + 0.3 * 2)
    assert at_nine > at_six and score.value == pytest.approx(100 * at_nine)
    assert score.detail["best"] == 0.65 and score.detail["salient"] == 2 and score.count == 2
    assert score.detail["predicted"][9] == 3 and score.detail["right"][9] == 2  # at .50


def test_intersection_over_union_is_a_mean_over_images():
    score = scored(([[0.8, 0.8, 0.12, 0.12]], [[1, 0, 0, 0]]), ([[0.12, 0.12]], [[0, 0]]), ([[0.9]], [[255]]))
    ratios = score.detail["intersection_over_union"]
    assert ratios[4] == pytest.approx(100 * (1 / 2 + 1) / 2)  # the second is empty and nothing is said; no third
    assert ratios[1] == pytest.approx(100 * (1 / 4 + 0) / 2)
    assert score.detail["mIoU"] == max(ratios[3:18])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_it_is_recomputed_from_its_counts_whatever_the_order(seed):
    pairs = random_pairs(seed)
    score = scored(*pairs)
    assert score == scored(*reversed(pairs))
    detail = score.detail
    rows = zip(detail["right"], detail["predicted"], strict=True)
    scores = [1.3 * right / (predicted + 0.3 * detail["salient"]) for right, predicted in rows]
    assert score.value == pytest.approx(100 * max(scores))


def test_void_pixels_change_nothing():
    pairs = random_pairs(3)
    others = [([[1 - v if m == 255 else v for v, m in zip(*rows, strict=True)] for rows in zip(*p, strict=True)], p[1])
              for p in pairs]  # fmt: skip
    assert scored(*pairs) == scored(*others)


def test_where_nothing_is_salient_it_is_undefined():
    score = scored(([[0.9]], None), ([[0.9]], [[255]]), ([[0.9]], [[0]]))
    assert score.value is None and score.count == 3
    assert MaxF().compute().detail["mIoU"] is None


def test_the_loss_weighs_both_sides_alike():
    """One salient pixel of four weighs three times what each other does."""
    logits = torch.tensor([[[[2.0, -1, 0.5, 1]]]])
    wanted = torch.tensor([[[[1.0, 0, 0, 0]]]])
    [loss] = Saliency().compare(logits, wanted, torch.ones_like(wanted, dtype=torch.bool)).values()
    expected = (0.75 * softplus(-logits[..., 0]) + 0.25 * softplus(logits[..., 1:]).sum()) / 4
    assert torch.allclose(loss, expected.squeeze())


def test_it_is_told_how_much_stands_out():
    told = Saliency().describe({"saliency": torch.tensor([[0.5, 0.4], [0.9, 0.1]])}, ("salient",))
    assert told == {"size": [2, 2], "salient": 0.5}
