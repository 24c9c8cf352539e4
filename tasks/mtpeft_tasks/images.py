"""What the built-in task types share: where their samples come from, and how their images are prepared."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from mtpeft.api import Dataset, ImageConfig, Sample, Split, Task, open_data
from mtpeft_tasks.digits import Digits, Kind
from mtpeft_tasks.transforms import Augmentation, Fit, Preset, build, check_flip


@dataclass
class ImageTask(Task, ABC):
    """A task on labelled images; without ``data``, on the embedded digits.

    Attributes:
        digits: which embedded scenes stand in for missing ``data``.
        gives: the target that a reader must give.
        classes: keep only these classes of the data; empty for all.
        augment: ``none``, ``light`` or ``standard``; or a table of `Augmentation`, e.g. ``{ area = [0.5, 1.0] }``.
        flip: mirror half of the training images; leave it off for digits and letters.
        flip_pairs: classes that change places in a mirrored image, e.g. ``[["left_door", "right_door"]]``.
        fit: ``stretch`` images to the backbone's size, or ``pad`` them.
    """

    digits: ClassVar[Kind]
    gives: ClassVar[str]

    classes: tuple[str, ...] = ()
    augment: Preset | Augmentation = "light"
    flip: bool = False
    flip_pairs: tuple[tuple[str, str], ...] = ()
    fit: Fit = "stretch"

    def dataset(self, split: Split, *, seed: int = 0) -> Dataset:
        data = self._read(split, seed, self.classes)
        if self.flip:
            check_flip(data.classes, self.flip_pairs)
        return data

    def _read(self, split: Split, seed: int, classes: Sequence[str]) -> Dataset:
        if not self.data:
            return Digits(self.digits, split, seed=seed, classes=classes)
        return open_data(self.data, split, gives=self.gives, seed=seed, classes=classes)

    def transform(self, image: ImageConfig, *, train: bool) -> Callable[[Sample], tuple[Tensor, dict[str, Any]]]:
        return build(image, train=train, augment=self.augment, flip=self.flip, flip_pairs=self.flip_pairs, fit=self.fit)
