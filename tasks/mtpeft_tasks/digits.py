"""The embedded data: scenes composed of scikit-learn's 1,797 real handwritten digits, on a 64 x 64 RGB canvas.

Nothing is downloaded and nothing is stored: a scene is a pure function of (seed, split, index). The digit images are
divided between the splits first, so that no handwritten digit of the test scenes was seen in training by any task.

Targets are what every reader of a kind gives (``classes`` are the names that its indices stand for):

- ``cls``: ``{"label": int, "classes": names}``
- ``det``: ``{"boxes": (N, 4) float xyxy in pixels, "labels": (N,) int64, "difficult": (N,) bool, "classes": names}``
- ``seg``: ``{"mask": (H, W) uint8, 255 ignored, "classes": names}``
- ``depth``, ``normals``, ``saliency``, ``edges``: the map of that name, of the scenes that ``det`` and ``seg`` show
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from mtpeft.api import SPLITS, Dataset, Sample, UsageError, did_you_mean
from mtpeft_tasks import relief
from mtpeft_tasks.maps import BACKGROUND
from mtpeft_tasks.maps import NAMES as MAP_NAMES

Kind = Literal["cls", "det", "seg", "depth", "normals", "saliency", "edges"]

CANVAS = 64
NAMES = tuple("0123456789")
SOURCES = {"train": 1197, "val": 200, "test": 400}
SCENES = {
    "cls": {"train": 640, "val": 400, "test": 800},
    **{kind: {"train": 640, "val": 200, "test": 400} for kind in ("det", "seg", *MAP_NAMES)},
}
_VERSION = 1  # raise when the scenes of a seed change: it is part of their hash
_LUMINANCE = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Scene:
    """One canvas: ``image (64, 64, 3) uint8``, tight ``boxes (N, 4)`` in pixels, ``labels (N,)``, ``mask (64, 64)``.

    The mask holds 0 for background and 1 + digit for ink; ``sources`` are the digit images used.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    mask: np.ndarray
    sources: tuple[int, ...]


@lru_cache(maxsize=1)
def sources() -> tuple[np.ndarray, np.ndarray]:
    """The digit images ``(1797, 8, 8)`` in [0, 1] and their labels ``(1797,)``."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return (digits.images / 16.0).astype(np.float32), digits.target.astype(np.int64)


@lru_cache(maxsize=8)
def source_split(seed: int) -> dict[str, np.ndarray]:
    """The indices of the digit images of each split: disjoint, stratified by class, a function of the seed."""
    labels = sources()[1]
    random = np.random.default_rng([seed, 0])
    shuffled = random.permutation(len(labels))
    rank = np.empty(len(labels))
    for digit in range(10):
        members = shuffled[labels[shuffled] == digit]
        rank[members] = (np.arange(len(members)) + random.random()) / len(members)
    order, split, start = np.argsort(rank, kind="stable"), {}, 0
    for name in SPLITS:
        split[name] = np.sort(order[start : start + SOURCES[name]])
        start += SOURCES[name]
    return split


@lru_cache(maxsize=64)
def _candidates(seed: int, split: str, digits: tuple[int, ...]) -> np.ndarray:
    chosen = source_split(seed)[split]
    return chosen[np.isin(sources()[1][chosen], digits)]


class Digits(Dataset):
    """Scenes of one split, made on the fly and kept in memory.

    Args:
        kind: ``cls`` has one digit for each scene; all others show the same scenes of 1 to 5.
        split: ``train``, ``val`` or ``test``.
        seed: of the division of the digit images and of the scenes.
        classes: show only these digits (class-incremental sequences); empty for all ten.

    Raises:
        UsageError: for a split or class that there is not.
    """

    def __init__(self, kind: Kind, split: str, *, seed: int = 0, classes: Sequence[str] = ()) -> None:
        for what, asked, known in (("split", [split], SPLITS), ("class", classes, (*NAMES, BACKGROUND))):
            for name in asked:
                if name not in known:
                    raise UsageError(f'the embedded digits have no {what} "{name}"', hint=did_you_mean(name, known))
        self.kind, self.split, self.seed = kind, split, seed
        shown = [name for name in classes if name in NAMES] or NAMES
        self.digits = tuple(sorted(int(name) for name in shown))
        names = tuple(NAMES[digit] for digit in self.digits)
        self.classes = MAP_NAMES.get(kind) or ((BACKGROUND, *names) if kind == "seg" else names)

    def __len__(self) -> int:
        return SCENES[self.kind][self.split]

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        scene = self.scene(index)
        target = {"classes": self.classes, **self._target(scene)}
        return Sample(Image.fromarray(scene.image), target, f"digits:{self.kind}/{self.split}/{index}")

    @property
    def _most(self) -> int:
        """Digits in a scene."""
        return 1 if self.kind == "cls" else 5

    def scene(self, index: int) -> Scene:
        """The scene of an index; its labels are digits, whatever classes were asked for."""
        return _scene(self.seed, self.split, index, self._most, self.digits)

    def origin(self, index: int) -> str:
        """The same for all kinds that show the same scene."""
        return f"digits {self.digits} of {self.seed}, at most {self._most}: {self.split}/{index}"

    def shown(self, index: int) -> frozenset[str]:
        names = {NAMES[label] for label in self.scene(index).labels}
        return frozenset({*names, *({BACKGROUND} if self.kind == "seg" else ())})

    def _target(self, scene: Scene) -> dict[str, Any]:
        labels = np.searchsorted(self.digits, scene.labels)
        if self.kind == "cls":
            return {"label": int(labels[0])}
        if self.kind in MAP_NAMES:
            return {self.kind: relief.target(self.kind, scene.mask > 0)}
        if self.kind == "seg":
            table = np.zeros(11, np.uint8)
            table[np.add(self.digits, 1)] = 1 + np.arange(len(self.digits))
            return {"mask": torch.from_numpy(table[scene.mask])}
        difficult = torch.zeros(len(labels), dtype=torch.bool)
        return {"boxes": torch.from_numpy(scene.boxes), "labels": torch.from_numpy(labels), "difficult": difficult}

    def manifest(self) -> dict[str, Any]:
        """Count, hash over the generator, its sources and every scene's labels, and how often each class is shown."""
        digest = hashlib.sha256(f"digits {_VERSION} {self.kind} {self.split} {self.seed}".encode())
        digest.update(sources()[0][_candidates(self.seed, self.split, self.digits)].tobytes())
        shown: Counter[str] = Counter()
        for index in range(len(self)):
            labels = self.scene(index).labels
            digest.update(labels.tobytes())
            shown.update(NAMES[label] for label in labels)
        histogram = {NAMES[digit]: shown[NAMES[digit]] for digit in self.digits}
        return {"count": len(self), "sha256": digest.hexdigest(), "classes": list(self.classes), "histogram": histogram}


@lru_cache(maxsize=8192)
def _scene(seed: int, split: str, index: int, most: int, digits: tuple[int, ...]) -> Scene:
    random = np.random.default_rng([seed, 1 + SPLITS.index(split), most, index])
    canvas, tone = _background(random)
    mask = np.zeros((CANVAS, CANVAS), np.uint8)
    candidates = _candidates(seed, split, digits)
    boxes: list[tuple[int, int, int, int]] = []
    chosen = []
    for _ in range(random.integers(1, most + 1)):
        source = int(random.choice(candidates))
        ink = _ink(source, int(random.integers(18, 41) if most == 1 else random.integers(18, 31)))
        place = _place(random, ink.shape, boxes)
        if place is not None:
            boxes.append(_draw(canvas, mask, ink, place, _colour(random, tone), 1 + int(sources()[1][source])))
            chosen.append(source)
    canvas += random.normal(0, random.uniform(0, 8), canvas.shape)
    image = np.clip(canvas, 0, 255).astype(np.uint8)
    return Scene(image, np.array(boxes, np.float32), sources()[1][chosen], mask, tuple(chosen))


def _ink(source: int, height: int) -> np.ndarray:
    """The digit's opacity in [0, 1], cropped to its strokes and enlarged to ``height`` pixels."""
    digit = sources()[0][source]
    digit = np.pad(_tight(digit, digit > 0.1), 1)  # a margin, or strokes at the border would be cut straight
    scale = height / (digit.shape[0] - 2)
    width, height = (round(scale * side) for side in digit.shape[::-1])
    enlarged = np.asarray(Image.fromarray(digit).resize((width, height), Image.Resampling.BICUBIC))
    opacity = np.clip((enlarged - 0.3) / 0.3, 0, 1)
    return _tight(opacity, opacity >= 0.5)


def _tight(values: np.ndarray, ink: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    return values[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _place(random: np.random.Generator, shape: tuple[int, ...], boxes: list) -> tuple[int, int] | None:
    """A corner ``(x, y)`` where at most a sliver of another box is covered, or None if 20 draws find no place."""
    height, width = shape
    for _ in range(20):
        x, y = int(random.integers(CANVAS - width + 1)), int(random.integers(CANVAS - height + 1))
        if all(_covered((x, y, x + width, y + height), box) <= 0.05 for box in boxes):
            return x, y
    return None


def _covered(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """The intersection of two boxes as a fraction of the smaller."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return max(width, 0) * max(height, 0) / smaller


def _draw(
    canvas: np.ndarray, mask: np.ndarray, ink: np.ndarray, place: tuple[int, int], colour: np.ndarray, value: int
) -> tuple[int, int, int, int]:
    """Blend the ink into the canvas, mark it in the mask, and give its box."""
    (height, width), (x, y) = ink.shape, place
    region = canvas[y : y + height, x : x + width]
    region += (colour - region) * ink[..., None]
    mask[y : y + height, x : x + width][ink >= 0.5] = value
    return x, y, x + width, y + height


def _background(random: np.random.Generator) -> tuple[np.ndarray, float]:
    """A canvas ``(64, 64, 3)`` that is plain, graded, noisy or striped, and its mean luminance."""
    base = random.uniform(20, 235, 3)
    shift = random.uniform(-45, 45, 3)
    style = random.integers(4)
    angle = random.uniform(0, 2 * np.pi)
    down, right = np.mgrid[0:CANVAS, 0:CANVAS] / CANVAS - 0.5
    along = down * np.sin(angle) + right * np.cos(angle)  # (64, 64), about [-0.7, 0.7]
    if style == 1:
        pattern = along
    elif style == 2:
        pattern = random.normal(0, 0.4, along.shape)
    elif style == 3:
        pattern = 0.5 * np.sign(np.sin(2 * np.pi * random.uniform(3, 9) * along))
    else:
        pattern = np.zeros_like(along)
    canvas = base + pattern[..., None] * shift
    return canvas, float(canvas.mean((0, 1)) @ _LUMINANCE)


def _colour(random: np.random.Generator, tone: float) -> np.ndarray:
    """A colour whose luminance differs from the background's by at least 80 of 255."""
    for _ in range(20):
        colour = random.uniform(0, 255, 3)
        if abs(colour @ _LUMINANCE - tone) >= 80:
            return colour
    return np.full(3, 0.0 if tone > 127 else 255.0)
