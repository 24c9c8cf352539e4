"""The kit for task types finds what it is for: a sound toy passes, and each broken one fails the check about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from mtpeft.api import Dataset, Features, FeaturesInfo, Form, Head, ImageConfig, Metric, Sample, Score, Task
from mtpeft.testing import CheckFailed, check_task


class Grey(Dataset):
    """Twelve grey images; which of two halves of the scale they are from is the label."""

    classes = ("dark", "light")

    def __init__(self, split: str) -> None:
        self.split = split

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Sample:
        value = (index * 37) % 256
        image = Image.fromarray(numpy.full((20, 30, 3), value, numpy.uint8))
        return Sample(image, {"label": int(value > 127)}, f"{self.split}/{index}")


class Lines(Head):
    def __init__(self, info: FeaturesInfo, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.weight = nn.Parameter(torch.randn(len(classes), info.pooled))

    def forward(self, features: Features) -> Tensor:
        return functional.linear(features.pooled, self.weight)

    def extend(self, classes: Sequence[str], info: FeaturesInfo | None = None) -> None:
        self.classes += tuple(classes)
        self.weight = nn.Parameter(torch.cat([self.weight.detach(), torch.zeros(len(classes), self.weight.shape[1])]))


RIGHT = Form("ratio", ("right", "count"), 100)


class Right(Metric):
    """Percent right, of counts."""

    def __init__(self) -> None:
        self.right = self.count = 0

    def update(self, predictions: Sequence[dict[str, Any]], targets: Sequence[dict[str, Any]]) -> None:
        self.count += len(targets)
        self.right += sum(p["label"] == t["label"] for p, t in zip(predictions, targets, strict=True))

    def merge(self, other: Right) -> None:
        self.right += other.right
        self.count += other.count

    def compute(self) -> Score:
        return Score.of(RIGHT, self.count, {"right": self.right, "count": self.count})


@dataclass
class Toy(Task):
    """Breaks nothing."""

    metric_name: ClassVar[str] = "right"

    def dataset(self, split: str, *, seed: int = 0) -> Dataset:
        return Grey(split)

    def head(self, info: FeaturesInfo, classes: Sequence[str]) -> Head:
        return Lines(info, classes)

    def transform(self, image: ImageConfig, *, train: bool) -> Callable[[Sample], tuple[Tensor, dict[str, Any]]]:
        def change(sample: Sample) -> tuple[Tensor, dict[str, Any]]:
            value = sample.image.getpixel((0, 0))[0] / 255 + (0.1 * torch.randn(1).item() if train else 0)
            size = (sample.image.height, sample.image.width)
            return torch.full((3, *image.size), value), {"label": sample.target["label"], "size": size}

        return change

    def loss(self, head: Head, outputs: Tensor, targets: list[dict[str, Any]]) -> dict[str, Tensor]:
        labels = torch.tensor([target.get("label", -100) for target in targets])
        total = functional.cross_entropy(outputs, labels, reduction="sum")
        return {"loss": total / (labels >= 0).sum().clamp(min=1)}

    def decode(self, head: Head, outputs: Tensor, targets: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"label": int(row.argmax())} for row in outputs]

    def metric(self, classes: Sequence[str]) -> Metric:
        return Right()

    def describe(self, prediction: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
        return {"class": classes[prediction["label"]]}

    def draw(self, image: Image.Image, prediction: dict[str, Any], classes: Sequence[str]) -> Image.Image:
        return image.copy()


@dataclass
class OneSplit(Toy):
    def dataset(self, split: str, *, seed: int = 0) -> Dataset:
        return Grey("all")


@dataclass
class OtherRandomness(Toy):
    def transform(self, image: ImageConfig, *, train: bool) -> Callable[[Sample], tuple[Tensor, dict[str, Any]]]:
        change, noise = super().transform(image, train=train), numpy.random.default_rng()
        return lambda sample: (change(sample)[0] + noise.normal(), change(sample)[1])


@dataclass
class NoTargets(Toy):
    def loss(self, head: Head, outputs: Tensor, targets: list[dict[str, Any]]) -> dict[str, Tensor]:
        labels = torch.tensor([target.get("label", -100) for target in targets])
        return {"loss": functional.cross_entropy(outputs, labels)}  # not a number where there is no label


@dataclass
class Summed(Toy):
    def loss(self, head: Head, outputs: Tensor, targets: list[dict[str, Any]]) -> dict[str, Tensor]:
        return {"loss": super().loss(head, outputs, targets)["loss"] * len(targets)}


class LastBatch(Right):
    def update(self, predictions: Sequence[dict[str, Any]], targets: Sequence[dict[str, Any]]) -> None:
        self.right = 0
        super().update(predictions, targets)


@dataclass
class ForgetsBatches(Toy):
    def metric(self, classes: Sequence[str]) -> Metric:
        return LastBatch()


class LastShard(Right):
    def merge(self, other: Right) -> None:
        self.right, self.count = other.right, self.count + other.count


@dataclass
class ForgetsShards(Toy):
    def metric(self, classes: Sequence[str]) -> Metric:
        return LastShard()


class Emptied(Right):
    def merge(self, other: Right) -> None:
        super().merge(other)
        other.right = other.count = 0


@dataclass
class EmptiesShards(Toy):
    def metric(self, classes: Sequence[str]) -> Metric:
        return Emptied()


class StaysHome(Right):
    def __init__(self) -> None:
        super().__init__()
        self.log = lambda: None  # no pickle holds a function without a name


@dataclass
class CannotTravel(Toy):
    def metric(self, classes: Sequence[str]) -> Metric:
        return StaysHome()


class Contradicted(Right):
    def compute(self) -> Score:
        score = super().compute()
        return replace(score, value=None if score.value is None else score.value + 1)


@dataclass
class ContradictsItsCounts(Toy):
    def metric(self, classes: Sequence[str]) -> Metric:
        return Contradicted()


class ZeroOfNothing(Right):
    def compute(self) -> Score:
        return Score(100 * self.right / max(self.count, 1), self.count)


@dataclass
class Pretends(Toy):
    def metric(self, classes: Sequence[str]) -> Metric:
        return ZeroOfNothing()


class Redrawn(Lines):
    def extend(self, classes: Sequence[str], info: FeaturesInfo | None = None) -> None:
        self.classes += tuple(classes)
        self.weight = nn.Parameter(torch.randn(len(self.classes), self.weight.shape[1]))


@dataclass
class ForgetsRows(Toy):
    def head(self, info: FeaturesInfo, classes: Sequence[str]) -> Head:
        return Redrawn(info, classes)


@dataclass
class SaysNotANumber(Toy):
    def describe(self, prediction: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
        return {"score": float("nan")}


@dataclass
class DrawsNoTruth(Toy):
    gives: ClassVar[str] = "label"

    def truth(self, target: dict[str, Any]) -> dict[str, Any]:
        return {"class": target["label"]}

    def draw(self, image: Image.Image, prediction: dict[str, Any], classes: Sequence[str]) -> Image.Image:
        return image.copy() if classes[prediction["label"]] else image


@dataclass
class FindsFaults(Toy):
    def faults(self, sample: Sample) -> list[str]:
        return ["its label is wrong"]


FOUND = {
    DrawsNoTruth: "truth_is_drawn",
    FindsFaults: "truth_is_drawn",
    OneSplit: "splits_are_disjoint",
    OtherRandomness: "transform_follows_the_seed",
    NoTargets: "missing_targets_cost_nothing",
    Summed: "loss_is_a_mean",
    ForgetsBatches: "metric_ignores_batches",
    ForgetsShards: "merges_from_shards",
    EmptiesShards: "merges_from_shards",
    CannotTravel: "merges_from_shards",
    ContradictsItsCounts: "score_follows_from_counts",
    Pretends: "nothing_seen_is_undefined",
    ForgetsRows: "head_grows",
    SaysNotANumber: "predictions_are_told_and_drawn",
}


def test_a_sound_task_passes() -> None:
    check_task(Toy)
    check_task(Toy(batch_size=3, group="one"))


@pytest.mark.parametrize("task", FOUND, ids=lambda task: task.__name__)
def test_what_is_broken_is_found(task: type[Task]) -> None:
    with pytest.raises(CheckFailed) as failed:
        check_task(task)
    (line,) = str(failed.value).splitlines()
    assert line.startswith(f"task {task.__name__}: {FOUND[task]}: ")
