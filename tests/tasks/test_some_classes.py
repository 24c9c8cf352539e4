"""What a task of some classes sees of the others: class-incremental segmentation and detection on generated data."""

from __future__ import annotations

from itertools import chain, combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.detection_toys import PLAIN, features

from mtpeft.backbone.features import ImageConfig
from mtpeft.config import Config, Overrides, load
from mtpeft.data.split_classes import split_classes
from mtpeft.errors import DataError, UsageError
from mtpeft.task import Dataset, Task
from mtpeft.training.setup import build_tasks
from mtpeft_tasks.detection.anchors import overlooked
from mtpeft_tasks.detection.task import Detection
from mtpeft_tasks.segmentation.task import Segmentation

CLASSES = ("a", "b", "c")
SHOWN = tuple(chain.from_iterable(combinations(CLASSES, count) for count in range(4)))
VOID = 255


def masks(root: Path) -> str:
    """An image for each set of classes, each class a row of pixels; its name says what it shows."""
    for split in ("train", "val", "test"):
        for shown in SHOWN:
            values = np.zeros((4, 4), np.uint8)
            values[0, 0] = VOID
            for row, name in enumerate(CLASSES, 1):
                values[row] = row if name in shown else 0
            for folder, image in ((split, Image.new("RGB", (4, 4))), (f"{split}annot", Image.fromarray(values))):
                (root / folder).mkdir(parents=True, exist_ok=True)
                image.save(root / folder / f"image-{''.join(shown)}.png")
    (root / "classes.txt").write_text("\n".join(("background", *CLASSES)))
    return f"masks:{root}"


def parts(data: str, *settings: str) -> dict[str, Task]:
    given = ["tasks.seg.split=3", "tasks.seg.class_order=natural", *(f"tasks.seg.{setting}" for setting in settings)]
    flags = {"--tasks": f"seg=seg@{data}", "--method": "linear-probe"}
    config: Config = split_classes(load(None, Overrides(flags, given)))
    return build_tasks(config)


def seen(data: Dataset) -> dict[str, list[str]]:
    """For each image, what its four rows are labelled as."""
    found = {}
    for index in range(len(data)):
        sample = data[index]
        assert sample.target["mask"][0, 0] == VOID and sample.target["mask"].dtype == torch.uint8
        named = [data.classes[row] if row != VOID else "ignored" for row in sample.target["mask"][:, 1].tolist()]
        found[sample.name.removeprefix("image-").removesuffix(".png")] = named
    return found


def wanted(images: list[str], labelled: set[str], otherwise: str) -> dict[str, list[str]]:
    def row(name: str, shown: str) -> str:
        return "background" if name not in shown else name if name in labelled else otherwise

    return {shown: ["background", *(row(name, shown) for name in CLASSES)] for shown in images}


EVERY = ["".join(shown) for shown in SHOWN]


@pytest.mark.parametrize(
    ("protocol", "chosen", "labelled"),
    [
        ("overlapped", lambda own, later, image: own in image, lambda own, earlier: {own}),
        ("disjoint", lambda own, later, image: own in image and not later & set(image), lambda own, earlier: {own}),
        (
            "sequential",
            lambda own, later, image: own in image and not later & set(image),
            lambda own, earlier: {own, *earlier},
        ),
    ],
)
def test_the_protocols_of_class_incremental_segmentation(tmp_path, protocol, chosen, labelled):
    found = parts(masks(tmp_path), f"protocol={protocol}")
    images = []
    for place, (own, task) in enumerate(zip(CLASSES, found.values(), strict=True)):
        earlier, later = CLASSES[:place], set(CLASSES[place + 1 :])
        train, test = task.dataset("train"), task.dataset("test")
        expected = [image for image in EVERY if chosen(own, later, image)]
        assert seen(train) == wanted(expected, labelled(own, earlier), "background")
        assert seen(test) == wanted(EVERY, labelled(own, earlier), "ignored")
        assert train.manifest()["count"] == len(expected) == train.manifest()["histogram"][own]
        images += expected
    once = len(images) == len(set(images))
    assert once == (protocol != "overlapped") and set(images) == set(EVERY) - {""}


def test_without_a_protocol_others_are_ignored_and_every_image_stays(tmp_path):
    for own, task in zip(CLASSES, parts(masks(tmp_path)).values(), strict=True):
        for split in ("train", "test"):
            assert seen(task.dataset(split)) == wanted(EVERY, {own}, "ignored")


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_of_a_task_alone_others_are_background_everywhere(tmp_path, split):
    task = Segmentation(data=masks(tmp_path), classes=("b",), others="background")
    assert seen(task.dataset(split)) == wanted(EVERY, {"b"}, "background")


def test_images_are_chosen_for_training_alone(tmp_path):
    task = Segmentation(data=masks(tmp_path), classes=("background", "b"), only_with_classes=True)
    assert sorted(seen(task.dataset("train"))) == ["ab", "abc", "b", "bc"]
    assert sorted(seen(task.dataset("test"))) == sorted(EVERY)
    task = Segmentation(data=masks(tmp_path), only_with_classes=("a",), without_classes=("c",))
    assert sorted(seen(task.dataset("train"))) == ["a", "ab"]


def test_what_cannot_be_chosen_is_said(tmp_path):
    data = masks(tmp_path)
    with pytest.raises(UsageError, match='no class "d"'):
        Segmentation(data=data, without_classes=("d",)).dataset("train")
    with pytest.raises(DataError, match="no training image shows what is asked for"):
        Segmentation(data=data, only_with_classes=("a",), without_classes=("a",)).dataset("train")
    (tmp_path / "classes.txt").write_text("\n".join(("rest", *CLASSES)))
    with pytest.raises(UsageError, match='no class "background"'):
        Segmentation(data=data, classes=("a",), others="background").dataset("train")


# detection


def test_boxes_of_others_are_background_or_ignored():
    whole = Detection().dataset("train")
    background = Detection(classes=("3", "4"), only_with_classes=True).dataset("train")
    ignored = Detection(classes=("3", "4"), others="ignore").dataset("train")
    kept = [index for index in range(len(whole)) if {"3", "4"} & whole.shown(index)]
    assert background.indices == kept and 0 < len(kept) < len(whole) == len(ignored)
    for place, index in enumerate(kept[:20]):
        target, other = whole[index].target, ignored[index].target
        rows = (target["labels"] == 3) | (target["labels"] == 4)
        for found in (background[place].target, other):
            assert found["boxes"].equal(target["boxes"][rows]) and found["classes"] == ("3", "4")
            assert found["labels"].equal(target["labels"][rows] - 3) and len(found["difficult"]) == len(found["boxes"])
        assert other["ignored"].equal(target["boxes"][~rows]) and "ignored" not in background[place].target


@pytest.mark.parametrize("head", ["fcos", "retinanet", "faster-rcnn"])
def test_what_is_found_in_ignored_boxes_costs_nothing(head):
    torch.manual_seed(0)
    task = Detection(head_config={"name": head})
    detector = task.head(PLAIN, ("x",))
    outputs = detector(features(PLAIN, batch=1))
    box = torch.tensor([[2.0, 2.0, 30.0, 30.0]])
    own = {"boxes": torch.tensor([[40.0, 40.0, 60.0, 60.0]]), "labels": torch.tensor([0]), "classes": ("x",)}
    name = "objectness" if head == "faster-rcnn" else "cls_logits"
    scores = outputs.named[name].detach().requires_grad_()
    outputs.named[name] = scores

    def gradient(target) -> torch.Tensor:
        return torch.autograd.grad(sum(task.loss(detector, outputs, [target]).values()), scores)[0]

    inside = overlooked(outputs.anchors, {**own, "ignored": box})
    plain, free = gradient(own), gradient({**own, "ignored": box})
    assert plain[0, inside].ne(0).any() and not free[0, inside].ne(0).any() and inside.any()
    assert free[0, ~inside].ne(0).any()
    assert gradient({**own, "ignored": torch.zeros(0, 4)}).equal(plain)


def test_ignored_boxes_move_with_their_image():
    sample = Detection(classes=("3",), others="ignore").dataset("train")[0]
    whole = sample.target["ignored"]
    transform = Detection(augment="none").transform(
        ImageConfig((128, 32), (0.5,) * 3, (0.5,) * 3, "bilinear"), train=True
    )
    _, target = transform(sample)
    assert torch.allclose(target["ignored"], whole * torch.tensor([0.5, 2.0, 0.5, 2.0]))
