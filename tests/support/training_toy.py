"""A tiny world to train in: a small random ViT, tasks of coloured noise, and a method with dropout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from mtpeft import plugins
from mtpeft.api import (
    Context,
    Dataset,
    Declarations,
    FeaturesInfo,
    Head,
    LowRankPart,
    Method,
    Metric,
    Routine,
    Sample,
    Score,
    Task,
    hookimpl,
    zeros,
)
from mtpeft.config import Config, Overrides, load


class Noise(Dataset):
    """Class k is a bright channel k in noise; no file is read."""

    def __init__(self, split: str, count: int, classes: Sequence[str], seed: int) -> None:
        self.split, self.count, self.classes, self.seed = split, count, tuple(classes), seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        generator = torch.Generator().manual_seed(
            1000 * self.seed + index + 100_000 * ("train", "val", "test").index(self.split)
        )
        label = index % len(self.classes)
        pixels = torch.randint(0, 120, (32, 32, 3), generator=generator, dtype=torch.uint8)
        pixels[..., label] += 60
        return Sample(Image.fromarray(pixels.numpy()), {"label": label}, f"{self.split} {index}")


class Pooled(Head):
    def __init__(self, width: int, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.drop = nn.Dropout(0.2)
        self.weight = nn.Parameter(torch.randn(len(classes), width) * 0.02)
        self.bias = nn.Parameter(torch.zeros(len(classes)))

    def forward(self, features: Any) -> Tensor:
        return F.linear(self.drop(features.pooled), self.weight, self.bias)

    def extend(self, classes: Sequence[str], info: FeaturesInfo | None = None) -> None:
        new = [name for name in classes if name not in self.classes]
        self.classes += tuple(new)
        fresh = torch.randn(len(new), self.weight.shape[1]) * 0.02
        self.weight = nn.Parameter(torch.cat([self.weight.detach(), fresh]))
        self.bias = nn.Parameter(torch.cat([self.bias.detach(), torch.zeros(len(new))]))


class Accuracy(Metric):
    def __init__(self, classes: Sequence[str]) -> None:
        self.classes, self.right, self.count = classes, 0, 0

    def update(self, predictions: Sequence[dict[str, Any]], targets: Sequence[dict[str, Any]]) -> None:
        for prediction, target in zip(predictions, targets, strict=True):
            self.right += self.classes[prediction["label"]] == target["class"]
            self.count += 1

    def merge(self, other: Accuracy) -> None:
        self.right += other.right
        self.count += other.count

    def compute(self) -> Score:
        return Score(100 * self.right / self.count, self.count, {"right": self.right})


@dataclass
class Jitter:
    """Noise from the global generator in training, none in evaluation."""

    classes: tuple[str, ...]
    train: bool

    def __call__(self, sample: Sample) -> tuple[Tensor, dict[str, Any]]:
        pixels = (
            torch.frombuffer(bytearray(sample.image.tobytes()), dtype=torch.uint8).view(32, 32, 3).permute(2, 0, 1)
            / 255
        )
        if self.train:
            pixels = pixels + 0.1 * torch.randn(3, 1, 1)
        named = {"class": self.classes[sample.target["label"]]} if sample.target else {}
        return pixels, named | {"size": torch.tensor((32, 32))}


@dataclass
class Colours(Task):
    """Which channel is bright. The loss of call number ``spoiled`` is no number."""

    metric_name: ClassVar[str] = "top-1"
    classifies: ClassVar[bool] = True

    names: tuple[str, ...] = ("red", "green", "blue")
    count: int = 24
    batch_size: int = 6
    spoiled: int = -1
    seen: int = 0

    def dataset(self, split: str, *, seed: int = 0) -> Dataset:
        return Noise(split, self.count if split == "train" else 9, self.names, seed)

    def head(self, info: Any, classes: Sequence[str]) -> Head:
        return Pooled(info.pooled, classes)

    def transform(self, image: Any, *, train: bool) -> Jitter:
        return Jitter(self.names, train)

    def loss(self, head: Head, outputs: Tensor, targets: list[dict[str, Any]]) -> dict[str, Tensor]:
        labels = torch.tensor([head.classes.index(target["class"]) for target in targets])
        self.seen += 1
        factor = float("nan") if self.seen == self.spoiled else 1.0
        return {"cross_entropy": factor * F.cross_entropy(outputs.float(), labels)}

    def decode(self, head: Head, outputs: Tensor, targets: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"label": int(row.argmax()), "scores": row.float()} for row in outputs]

    def metric(self, classes: Sequence[str]) -> Metric:
        return Accuracy(classes)

    def describe(self, prediction: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
        return {"class": classes[prediction["label"]]}

    def draw(self, image: Image.Image, prediction: dict[str, Any], classes: Sequence[str]) -> Image.Image:
        return image


class Dropped(LowRankPart):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.randn(2, inputs) * 0.1)
        self.B = zeros(outputs, 2)

    def factors(self) -> tuple[Tensor, Tensor, float]:
        return self.A, self.B, 1.0

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        return F.linear(F.dropout(x, 0.1, self.training), a)


@dataclass
class Toy(Method):
    """A low-rank update with dropout, so that the model's own randomness matters."""

    declares = Declarations(category="partial", mergeable=True, learning_rate=1e-2)
    at: str = "attn.q | mlp.fc1"

    def part(self, site: Any) -> Dropped:
        return Dropped(site.shape[1], site.out_features)


class Halved(Dropped):
    """Can be cut to rank 1."""

    def cut(self) -> None:
        self.A, self.B = nn.Parameter(self.A.detach()[:1].clone()), nn.Parameter(self.B.detach()[:, :1].clone())

    def fit(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        if shapes["A"][0] < len(self.A):
            self.cut()


@dataclass
class Shrinking(Toy):
    """From the third update on, only half of it is left."""

    def part(self, site: Any) -> Dropped:
        return Halved(site.shape[1], site.out_features)

    def routine(self) -> HalfAway:
        return HalfAway(self)


class HalfAway(Routine[Shrinking]):
    def begin_update(self, context: Context) -> bool:
        parts = [placed.part for placed in context.parts(self.method) if len(placed.part.A) > 1]
        for part in parts if context.step == 2 else ():
            part.cut()
        return context.step == 2 and bool(parts)


def tiny(image_size: tuple[int, int] | None = None, pretrained: bool = True) -> nn.Module:
    """Always the same small random ViT."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return timm.models.vision_transformer.VisionTransformer(
            img_size=image_size or 32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=0
        )


class Plugin:
    @hookimpl
    def register_tasks(self) -> dict[str, str]:
        return {"colours": "support.training_toy:Colours"}

    @hookimpl
    def register_methods(self) -> dict[str, str]:
        return {"toy": "support.training_toy:Toy", "shrinking": "support.training_toy:Shrinking"}

    @hookimpl
    def register_backbones(self) -> dict[str, str]:
        return {"tiny": "support.training_toy:tiny"}


def register() -> None:
    plugins.manager().register(Plugin(), "toy")


def config(
    folder: Path | str,
    *settings: str,
    tasks: str = "a=colours,b=colours",
    schedule: str = "joint",
    method: str = "toy@task",
) -> Config:
    """A run of a few updates of these tasks on the tiny backbone."""
    flags = {"--tasks": tasks, "--method": method, "--backbone": "tiny", "--schedule": schedule, "--steps": 6}
    return load(None, Overrides(flags | {"--out": str(folder), "--device": "cpu"}, list(settings)))
