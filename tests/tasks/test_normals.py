"""Surface normals: angles in closed form, medians from a histogram, losses between unit vectors."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtpeft_tasks.normals.metric import AngularError, angles, median
from mtpeft_tasks.normals.task import SurfaceNormals

UP = torch.tensor([0.0, 0.0, 1.0])


def tilted(*degrees: float) -> torch.Tensor:
    """Vectors ``(3, 1, N)`` that lean to the right from `UP` by so many degrees."""
    radians = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([radians.sin(), torch.zeros_like(radians), radians.cos()])[:, None]


def scored(*pairs):
    metric = AngularError()
    for predicted, actual in pairs:
        metric.update([{"normals": predicted}], [{} if actual is None else {"normals": actual}])
    return metric.compute()


def up(count: int) -> torch.Tensor:
    return UP.view(3, 1, 1).expand(3, 1, count)


@pytest.mark.parametrize("degrees", [0.0, 1e-4, 5.0, 45.0, 90.0, 179.9, 180.0])
def test_angles_are_exact_where_an_arc_cosine_is_not(degrees):
    assert angles(7 * tilted(degrees)[:, 0], UP[:, None]).item() == pytest.approx(degrees, rel=1e-6, abs=1e-9)


def test_a_vector_without_a_direction_is_at_right_angles_to_all():
    assert angles(torch.zeros(3, 1), UP[:, None]).item() == pytest.approx(90)


def test_errors_against_hand_counts():
    degrees = (5.0, 11.2, 20.0, 29.9, 100.0)
    score = scored((tilted(*degrees), up(5)))
    assert score.value == pytest.approx(sum(degrees) / 5)
    assert score.detail["rmse"] == pytest.approx(sqrt(sum(d * d for d in degrees) / 5))
    assert score.detail["within"] == {"11.25": 40.0, "22.5": 60.0, "30.0": 80.0}
    assert score.detail["median"] == pytest.approx(20, abs=0.25)
    assert score.detail["pixels"] == 5 and sum(score.detail["histogram"]) == 5


def test_a_median_lies_within_its_step():
    histogram = torch.zeros(720, dtype=torch.int64)
    histogram[8], histogram[40] = 30, 10
    assert median(histogram) == pytest.approx(2 + 0.25 * 20 / 30)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_the_order_of_samples_changes_nothing_and_the_median_is_near(seed):
    generator = torch.Generator().manual_seed(seed)
    pairs = [(torch.randn(3, 5, 7, generator=generator), torch.randn(3, 5, 7, generator=generator)) for _ in range(6)]
    score = scored(*pairs)
    assert score == scored(*reversed(pairs))
    every = torch.cat([angles(one.flatten(1), other.flatten(1)) for one, other in pairs]).sort().values
    assert every[104] - 0.25 <= score.detail["median"] <= every[105] + 0.25
    assert score.value == pytest.approx(float(every.mean()))
    assert score.value == score.detail["degrees"] / score.detail["pixels"]


def test_pixels_without_a_normal_are_left_out():
    actual = up(3).clone()
    actual[:, :, 0] = 0
    actual[1, :, 1] = float("nan")
    assert scored((tilted(90, 90, 10), actual)).value == pytest.approx(10)


def test_nothing_measured_is_undefined():
    score = scored((up(2), None), (up(2), torch.zeros(3, 1, 2)))
    assert score.value is None and score.count == 2 and score.detail["pixels"] == 0


def test_losses_are_between_unit_vectors():
    wanted, labelled = up(1)[None], torch.ones(1, 1, 1, 1, dtype=torch.bool)
    given = 3 * tilted(60)[None].float()
    [l1] = SurfaceNormals().compare(given, 2 * wanted, labelled).values()
    [cosine] = SurfaceNormals(distance="cosine").compare(given, 2 * wanted, labelled).values()
    assert l1.item() == pytest.approx((sqrt(3) / 2 + 1 / 2) / 3) and cosine.item() == pytest.approx(1 / 2)


def test_predictions_have_unit_length_and_are_told():
    task = SurfaceNormals()
    normals = task.read(torch.tensor([0.0, 0.0, 5.0]).view(3, 1, 1).expand(3, 2, 4))
    assert torch.allclose(normals.norm(dim=0), torch.ones(2, 4))
    assert task.describe({"normals": normals}, task.names) == {"size": [2, 4], "mean": {"x": 0.0, "y": 0.0, "z": 1.0}}
