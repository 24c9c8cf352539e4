"""What is said of targets before anyone trains: as predictions, empty or not, and what is wrong with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mtpeft.api import Sample
from mtpeft_tasks import drawing
from mtpeft_tasks.classification.task import Classification
from mtpeft_tasks.detection.task import Detection
from mtpeft_tasks.segmentation.task import Segmentation

CLASSES = ("cat", "dog")


def sample(**target) -> Sample:
    return Sample(Image.new("RGB", (40, 30)), {"classes": CLASSES, **target}, "a.png")


def boxes(*rows: tuple[float, ...], labels: list[int] | None = None) -> dict:
    found = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
    return {"boxes": found, "labels": torch.tensor([1] * len(found) if labels is None else labels)}


def test_the_truth_of_a_label_is_certain():
    task = Classification()
    said = task.describe(task.truth(sample(label=1).target), CLASSES)
    assert (said["class"], said["probability"]) == ("dog", 1.0)
    assert task.empty({}) and not task.empty({"label": 0})


def test_the_truth_of_boxes_is_shown_without_scores():
    task, one = Detection(), sample(**boxes((4, 4, 20, 20)))
    prediction = task.truth(one.target)
    said = {"class": "dog", "score": 1.0, "box": [4.0, 4.0, 20.0, 20.0]}
    assert task.describe(prediction, CLASSES) == {"objects": [said]}
    bare = drawing.boxes(one.image, one.target, CLASSES)
    assert np.array_equal(np.asarray(task.draw(one.image, prediction, CLASSES)), np.asarray(bare))
    assert task.empty({}) and task.empty(boxes()) and not task.empty(one.target)


def test_the_truth_of_a_mask_is_the_mask():
    task, target = Segmentation(), sample(mask=torch.ones(30, 40, dtype=torch.uint8)).target
    assert task.describe(task.truth(target), CLASSES)["area"] == {"dog": 1.0}
    assert task.empty({}) and task.empty({"mask": torch.full((2, 2), 255)}) and not task.empty(target)


@pytest.mark.parametrize(
    ("task", "target", "faults"),
    [
        (Classification(), {"label": 1}, []),
        (Classification(), {}, []),
        (Classification(), {"label": 2}, ["label 2 is none of the 2 classes"]),
        (Detection(), {}, []),
        (Detection(), boxes((0, 0, 40, 30)), []),
        (Detection(), boxes((0, 0, 40, 30), labels=[]), ["it has 1 boxes and 0 labels"]),
        (Detection(), boxes((5, 5, 5, 9)), ["box 1 has no area: [5.0, 5.0, 5.0, 9.0]"]),
        (
            Detection(),
            boxes((1, 1, 2, 2), (-1, 0, 41, 9), labels=[2, 0]),
            ["box 1 is of no class (2): [1.0, 1.0, 2.0, 2.0]", "box 2 is outside its image: [-1.0, 0.0, 41.0, 9.0]"],
        ),
        (Segmentation(), {}, []),
        (Segmentation(), {"mask": torch.full((30, 40), 255)}, []),
        (Segmentation(), {"mask": torch.full((30, 40), 2)}, ["its mask has the value 2, and there are 2 classes"]),
        (Segmentation(), {"mask": torch.zeros(40, 30)}, ["its mask is (30, 40), and the image (40, 30)"]),
    ],
)
def test_faults(task, target, faults):
    assert task.faults(sample(**target)) == faults


def test_a_box_of_no_numbers_has_faults():
    assert len(Detection().faults(sample(**boxes((0, 0, float("nan"), 5))))) == 2


def test_lines_and_words_grow_with_the_picture():
    def share(side: int) -> float:
        found = {"boxes": torch.tensor([[0.0, 0.0, side, side]]), "labels": torch.tensor([0])}
        return float((np.asarray(drawing.boxes(Image.new("RGB", (side, side)), found, ("a",))) > 0).any(-1).mean())

    assert share(2560) == pytest.approx(share(640), rel=0.3)
