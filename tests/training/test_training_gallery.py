"""Pictures of predictions: which samples, whose classes, and where each picture stands."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from support import training_toy

from mtpeft.training.evaluate import predict
from mtpeft.training.gallery import gallery, mosaic
from mtpeft.training.session import Session


def square(side: int, colour: str) -> Image.Image:
    return Image.new("RGB", (side, side), colour)


def test_columns_stay_aligned_and_large_pictures_become_small():
    whole = np.array(mosaic({"truth": [square(500, "red"), square(40, "lime")], "guess": [square(40, "blue")] * 2}))
    places = {}
    for name, colour in (("red", (255, 0, 0)), ("lime", (0, 255, 0)), ("blue", (0, 0, 255))):
        rows, columns = np.nonzero((whole == colour).all(-1))
        places[name] = (rows.min(), columns.min(), np.ptp(rows) + 1)
    assert places["red"][2] == 224 and places["lime"][2] == 40
    assert places["red"][0] == places["lime"][0] and places["red"][1] == places["blue"][1]
    assert places["blue"][0] > places["red"][0] + 224


def test_truth_and_prediction_of_samples_spread_over_the_split(tmp_path, monkeypatch):
    run = Session.start(training_toy.config(tmp_path / "run")).run
    name = run.trained[0]
    run.meet(name)
    drawn = []
    draw = training_toy.Colours.draw

    def noted(task, image, found, classes):
        drawn.append((np.asarray(image).tolist(), found, tuple(classes)))
        return draw(task, image, found, classes)

    monkeypatch.setattr(training_toy.Colours, "draw", noted)
    run.host.train()
    gallery(run, name, "test", count=3)
    data = run.dataset(name, "test")
    picked = [data[(2 * number + 1) * len(data) // 6] for number in range(3)]
    pictures = [np.asarray(sample.image).tolist() for sample in picked]
    assert run.host.training and [picture for picture, _, _ in drawn] == pictures * 2
    true = [data.classes[sample.target["label"]] for sample in picked]
    assert [found["class"] for _, found, _ in drawn[:3]] == true
    images = [run.tasks[name].transform(run.backbone.image, train=False)(sample)[0] for sample in picked]
    run.host.eval()
    said = predict(run, name, torch.stack(images), [{}] * 3)
    assert [str(found) for _, found, _ in drawn[3:]] == [str(found) for found in said]
    assert {classes for _, _, classes in drawn} == {data.classes}


def test_a_split_of_two_shows_two(tmp_path):
    run = Session.start(training_toy.config(tmp_path / "run")).run
    name = run.trained[0]
    run.meet(name)
    few = gallery(run, name, "test", count=2)
    assert few.width < gallery(run, name, "test", count=4).width
