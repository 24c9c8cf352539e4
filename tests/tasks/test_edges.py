"""Edges: matches within a tolerance, the best threshold of the whole data set, and a weighted cross-entropy."""

from __future__ import annotations

from math import hypot, log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import softplus

from mtpeft_tasks.edges.metric import THRESHOLDS, DilatedF, largest_within
from mtpeft_tasks.edges.task import EdgeDetection


def scored(*pairs, tolerance=0.0075):
    metric = DilatedF(tolerance, 0.95)
    for predicted, actual in pairs:
        metric.update([{"edges": predicted}], [{} if actual is None else {"edges": actual}])
    return metric.compute()


def line(column: int, height=20, width=30, value=1.0) -> torch.Tensor:
    values = torch.zeros(height, width)
    values[:, column] = value
    return values


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), radius=st.floats(1, 4.8))
def test_the_largest_within_a_radius(seed, radius):
    values = torch.rand(8, 9, generator=torch.Generator().manual_seed(seed))
    found = largest_within(values, radius)
    for y, x in [(0, 0), (3, 4), (7, 8), (5, 0)]:
        near = [values[v, u] for v in range(8) for u in range(9) if (v - y) ** 2 + (u - x) ** 2 <= radius**2]
        assert found[y, x] == max(near)


def test_a_line_in_its_place_is_perfect_and_beside_it_within_the_tolerance():
    exact = scored((line(10), line(10)))
    assert exact.value == 100.0 and exact.detail["labelled"] == 20
    assert scored((line(11), line(10))).value == 100.0
    assert scored((line(12), line(10))).value == 0.0
    assert scored((line(12), line(10)), tolerance=2 / hypot(20, 30)).value == pytest.approx(100.0)


def test_the_best_threshold_against_hand_counts():
    """A second line that is less sure: with it precision is a half, without it all is right."""
    both = line(10, value=0.8) + line(20, value=0.4)
    score = scored((both, line(10)))
    assert score.value == 100.0 and score.detail["best"] == 0.41
    assert score.detail["predicted"][29] == 40 and score.detail["right"][29] == 20 and score.detail["found"][29] == 20
    worse = scored((line(10, value=0.4) + line(20, value=0.8), line(10)))
    assert worse.value == pytest.approx(100 * 2 / 3)  # precision 1/2, recall 1


def test_one_threshold_serves_the_whole_data_set():
    """Each image alone would be perfect at a threshold of its own."""
    pairs = [(line(10, value=0.8) + line(20, value=0.4), line(10)), (line(10, value=0.3), line(10))]
    assert all(scored(pair).value == 100.0 for pair in pairs)
    assert scored(*pairs).value == pytest.approx(100 * 2 * (2 / 3) / (2 / 3 + 1))


def test_void_pixels_change_nothing():
    actual = line(10)
    actual[:, 20:] = 255
    assert scored((line(10) + line(25), actual)) == scored((line(10), actual))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_it_is_recomputed_from_its_counts_whatever_the_order(seed):
    generator = torch.Generator().manual_seed(seed)
    pairs = [
        (torch.rand(9, 8, generator=generator), (torch.rand(9, 8, generator=generator) < 0.2).float()) for _ in range(4)
    ]
    pairs[0][1][0] = 1
    score = scored(*pairs)
    assert score == scored(*reversed(pairs))
    detail, best = score.detail, 0.0
    for predicted, right, found in zip(detail["predicted"], detail["right"], detail["found"], strict=True):
        precision, recall = right / max(predicted, 1), found / detail["labelled"]
        best = max(best, 2 * precision * recall / max(precision + recall, 1e-6))
    assert len(detail["found"]) == len(THRESHOLDS) and score.value == pytest.approx(100 * best)


def test_the_loss_in_the_detail_is_the_one_that_is_trained():
    logits = torch.randn(1, 1, 6, 7, generator=torch.Generator().manual_seed(0))
    actual = torch.randint(0, 2, (6, 7), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    actual[0] = 255
    task, wanted, labelled = EdgeDetection(), (actual == 1).float()[None, None], (actual != 255)[None, None]
    [trained] = task.compare(logits, wanted, labelled).values()
    assert scored((logits[0, 0].sigmoid(), actual)).detail["loss"] == pytest.approx(trained.item(), rel=1e-5)
    entropy = torch.where(wanted > 0, 0.95 * softplus(-logits), 0.05 * softplus(logits))
    assert trained.item() == pytest.approx(entropy[labelled].mean().item())


def test_a_sure_mistake_has_a_finite_loss():
    score = scored((torch.tensor([[0.0]]), torch.tensor([[1]])))
    assert score.detail["loss"] == pytest.approx(-0.95 * log(1e-6))


def test_without_any_edge_it_is_undefined():
    score = scored((line(3), None), (line(3), torch.zeros(20, 30)))
    assert score.value is None and score.count == 2 and score.detail["pixels"] == 600
    assert scored((line(3), None)).detail["loss"] is None


def test_the_unit_says_that_it_is_no_published_measure():
    assert EdgeDetection.unit == "% dilated" and "comparable with published" in DilatedF.__doc__
