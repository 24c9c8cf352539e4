"""The splits of several tasks, each opened once; which of them may be opened is said beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from mtpeft.data.combined_datasets import JoinedSplits, to_train_on
from mtpeft.data.decoded_cache import Decoded, place
from mtpeft.data.label_checks import recorded
from mtpeft.data.loading import ImageSource, Source
from mtpeft.data.shared_images import SharedImages
from mtpeft.errors import DataError, UsageError
from mtpeft.task import SPLITS, Dataset, Split, Task

_NO_MATTER = {setting.name for setting in fields(Task)} - {"data"}
"""Settings of every task that do not change its samples."""


@dataclass
class OpenedData:
    """The data of a run's tasks.

    Attributes:
        types: task -> its type, which tells cached samples apart.
        train_on: the splits that are trained on as one.
        evaluate_on: the split that fills the result matrix; with ``val``, ``test`` stays closed.
        seed: of splits held out of the training data, and of subsets.
        cache: a folder for decoded samples, or None.
    """

    tasks: Mapping[str, Task]
    types: Mapping[str, str]
    train_on: Sequence[str] = ("train",)
    evaluate_on: str = "test"
    seed: int = 0
    cache: str | None = None
    _shared: dict[tuple[tuple[str, ...], str], SharedImages] = field(default_factory=dict, repr=False)
    _opened: dict[tuple[str, str], Dataset] = field(default_factory=dict, repr=False)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that may be seen: those trained on as one, and those that are apart from it."""
        closed = {"val"} & set(self.train_on) | {"test"} - {self.evaluate_on}
        return tuple(split for split in SPLITS if split not in closed)

    def dataset(self, name: str, split: str) -> Dataset:
        """The samples of a task's split (one of `splits`), opened once; all that is trained on is ``train``.

        Raises:
            DataError: if it cannot be used, or holds no sample.
            UsageError: for a split that must not be seen.
        """
        if split not in self.splits:
            said = f"evaluate_on = {self.evaluate_on}, train_on = {', '.join(self.train_on)}"
            raise UsageError(f"this run does not open {split} ({said})", hint=f"it has {', '.join(self.splits)}")
        if (name, split) not in self._opened:
            parts = [self._open(name, part) for part in (self.train_on if split == "train" else (split,))]
            whole = parts[0] if len(parts) == 1 else JoinedSplits(parts)
            train = split == "train"
            self._opened[name, split] = to_train_on(whole, self.tasks[name], self.seed) if train else whole
        return self._opened[name, split]

    def source(self, names: Sequence[str], split: str) -> ImageSource:
        """What samples of a task's split, or of several tasks' that share their images, are drawn from.

        Raises:
            DataError: where tasks do not share them, as `SharedImages` says.
        """
        if len(names) == 1:
            return Source(self.tasks[names[0]], self.dataset(names[0], split))
        return self.shared(names, split)

    def shared(self, names: Sequence[str], split: str) -> SharedImages:
        """The images of a split that several tasks share, found once."""
        place = (tuple(names), split)
        if place not in self._shared:
            tasks = {name: self.tasks[name] for name in names}
            self._shared[place] = SharedImages(tasks, {name: self.dataset(name, split) for name in names})
        return self._shared[place]

    def manifest(self) -> dict[str, Any]:
        """What each split of each task records of itself."""
        return {n: {split: recorded(self.dataset(n, split)) for split in self.splits} for n in self.tasks}

    def _open(self, name: str, split: str) -> Dataset:
        samples = self.tasks[name].dataset(cast(Split, split), seed=self.seed)
        if len(samples) == 0:
            data = self.tasks[name].data or "the embedded data"
            raise DataError(f'task "{name}" has no {split} samples in {data}', hint="look at it: mtpeft data PATH")
        return Decoded(samples, self._kept_in(name, split, samples)) if self.cache else samples

    def _kept_in(self, name: str, split: str, data: Dataset) -> Path:
        own = {key: value for key, value in vars(self.tasks[name]).items() if key not in _NO_MATTER}
        about = {"type": self.types[name], "split": split, "seed": self.seed, **own}
        return place(Path(self.cache or ""), about, data)
