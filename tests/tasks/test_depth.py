"""Depth: absolute error in training, root of the mean squared one over all pixels of the data set in testing."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtpeft_tasks.depth.metric import DepthError
from mtpeft_tasks.depth.task import DepthEstimation

ACTUAL = torch.tensor([[1.0, 2, 4], [0, float("nan"), 8]])
PREDICTED = torch.tensor([[2.0, 2, 5], [9, 9, 7]])


def scored(*pairs):
    metric = DepthError()
    for predicted, actual in pairs:
        metric.update([{"depth": predicted}], [{} if actual is None else {"depth": actual}])
    return metric.compute()


def test_errors_against_hand_counts():
    score = scored((PREDICTED, ACTUAL))
    assert score.value == sqrt(3 / 4) and score.count == 1
    assert score.detail == {
        "pixels": 4,
        "squared": 3.0,
        "relative": 1 + 0 + 1 / 4 + 1 / 8,
        "near": 2,  # 2 is 2, 7 is within a quarter of 8; 5 against 4 is exactly 1.25 and no longer near
        "absrel": (1 + 1 / 4 + 1 / 8) / 4,
        "delta1": 50.0,
    }


def test_pixels_count_and_not_images():
    score = scored((torch.zeros(1, 1), torch.ones(1, 1)), (torch.full((3, 5), 4.0), torch.ones(3, 5)))
    assert score.value == pytest.approx(sqrt((1 + 15 * 9) / 16)) and score.count == 2


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_the_order_of_samples_changes_nothing(seed):
    generator = torch.Generator().manual_seed(seed)
    pairs = [(torch.rand(5, 7, generator=generator), torch.rand(5, 7, generator=generator)) for _ in range(6)]
    assert scored(*pairs) == scored(*reversed(pairs))


def test_it_is_recomputed_from_its_counts():
    generator = torch.Generator().manual_seed(0)
    score = scored(*[(torch.rand(5, 7, generator=generator), torch.rand(5, 7, generator=generator)) for _ in range(3)])
    detail = score.detail
    assert score.value == sqrt(detail["squared"] / detail["pixels"])
    assert detail["absrel"] == detail["relative"] / 105 and detail["delta1"] == 100 * detail["near"] / 105


def test_nothing_measured_is_undefined():
    score = scored((PREDICTED, None), (PREDICTED, torch.zeros(2, 3)))
    assert score.value is None and score.count == 2 and score.detail["pixels"] == 0


def test_the_loss_is_the_mean_absolute_error():
    task, wanted = DepthEstimation(), ACTUAL.nan_to_num(0)[None, None]
    assert task.compare(PREDICTED[None, None], wanted, wanted > 0) == {"l1": torch.tensor(3 / 4)}


def test_a_distance_is_not_below_zero():
    assert DepthEstimation().read(torch.tensor([[[-1.0, 2.0]]])).tolist() == [[0.0, 2.0]]


def test_it_is_told_with_its_range():
    told = DepthEstimation().describe({"depth": torch.tensor([[1.0, 2.0, 4.0]])}, ("depth",))
    assert told == {"size": [1, 3], "least": 1.0, "median": 2.0, "most": 4.0}
