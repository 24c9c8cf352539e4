"""AP: goldens, what is undefined, and independence of order and batches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtpeft.api import Score
from mtpeft_tasks.detection.average_precision import AveragePrecision

CLASSES = ("cat", "dog", "owl")
BOXES = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 40.0, 40.0]])


def target(boxes=BOXES, labels=(0, 1), classes=CLASSES, **more):
    return {"boxes": boxes, "labels": torch.tensor(labels, dtype=torch.long), "classes": classes, **more}


def prediction(boxes=BOXES, labels=(0, 1), scores=None):
    scores = torch.ones(len(labels)) if scores is None else torch.tensor(scores)
    return {"boxes": boxes, "labels": torch.tensor(labels, dtype=torch.long), "scores": scores}


NOTHING = prediction(torch.zeros(0, 4), ())


def score(predictions, targets, classes=CLASSES) -> Score:
    metric = AveragePrecision(classes)
    metric.update(predictions, targets)
    return metric.compute()


def test_perfect_predictions_score_100_and_an_absent_class_is_undefined(capfd):
    found = score([prediction()] * 2, [target()] * 2)
    assert (found.value, found.count) == (100.0, 2)
    assert found.detail == {
        "AP50": 100.0,
        "AP75": 100.0,
        "boxes": 4,
        "per_class": {"cat": 100.0, "dog": 100.0, "owl": None},
    }
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("shift", "thresholds"), [(1.0, 7), (2.0, 4), (3.0, 1), (4.0, 0)])
def test_a_shifted_box_counts_at_the_thresholds_that_its_overlap_reaches(shift, thresholds):
    box = BOXES[:1]  # moved by s of its 10 pixels, the overlap is (10 - s) / (10 + s)
    found = score([prediction(box + torch.tensor([shift, 0.0, shift, 0.0]), (0,))], [target(box, (0,))])
    assert found.value == pytest.approx(10 * thresholds)
    assert found.detail["AP50"] == (100.0 if thresholds > 0 else 0.0)
    assert found.detail["AP75"] == (100.0 if thresholds > 5 else 0.0)


def test_finding_nothing_scores_0():
    found = score([NOTHING], [target()])
    assert (found.value, found.detail["AP50"], found.detail["per_class"]["cat"]) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "nothing", [{}, target(torch.zeros(0, 4), ()), target(difficult=torch.ones(2, dtype=torch.bool))]
)
def test_without_boxes_to_find_the_score_is_undefined(nothing):
    assert score([prediction()] * 3, [nothing] * 3) == Score(None, 3, {"boxes": 0})


def test_of_two_boxes_one_found_after_a_false_alarm():
    """Ranked: false, true. Precision is 1/2 at the 51 recalls up to 1/2, and 0 at the 50 beyond."""
    boxes = torch.tensor([[50.0, 50.0, 60.0, 60.0], [0.0, 0.0, 10.0, 10.0]])
    found = score([prediction(boxes, (0, 0), (0.9, 0.8))], [target(labels=(0, 0))])
    assert found.value == pytest.approx(100 * 0.5 * 51 / 101)


def test_difficult_boxes_are_neither_asked_for_nor_false_alarms():
    difficult = torch.tensor([False, True])
    for found in (prediction(labels=(0, 0)), prediction(BOXES[:1], (0,))):
        result = score([found], [target(labels=(0, 0), difficult=difficult)])
        assert (result.value, result.detail["boxes"]) == (100.0, 1)


def test_classes_are_compared_by_name():
    other = target(labels=(2, 1), classes=("owl", "dog", "cat"))
    assert score([prediction()], [other]).value == 100.0
    unknown = score([prediction()], [target(classes=("cat", "eel", "owl"))])
    assert unknown.detail["per_class"] == {"cat": 100.0, "dog": None, "owl": None, "eel": 0.0}
    assert unknown.value == 50.0


@settings(max_examples=15, deadline=None)
@given(data=st.data(), seed=st.integers(0, 999), count=st.integers(2, 8))
def test_order_and_batches_of_the_images_do_not_matter(data, seed, count):
    generator = torch.Generator().manual_seed(seed)

    def some(most: int):
        corner = torch.randint(0, 20, (int(torch.randint(0, most, (), generator=generator)), 2), generator=generator)
        labels = torch.randint(0, 3, (len(corner),), generator=generator).tolist()
        return torch.cat([corner, corner + 10], dim=1).float(), labels

    images = [(prediction(*some(5)), target(*some(4))) for _ in range(count)]  # scores are all alike: the hardest case
    whole = score(*map(list, zip(*images, strict=True)))
    shuffled = data.draw(st.permutations(images))
    metric = AveragePrecision(CLASSES)
    for one, its in shuffled:
        metric.update([one], [its])
    assert metric.compute() == whole
