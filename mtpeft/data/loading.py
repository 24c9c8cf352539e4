"""Keyed loading: a sample's transform depends on (seed, task, sample, visit) alone, so workers cannot matter."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mtpeft.errors import MtpeftError
from mtpeft.keyed_random import Cursor, key
from mtpeft.task import Dataset, ImageConfig, Task

Key = tuple[str, int, int]
"""Source, index of the sample in it, and how often it was drawn before."""
Prepared = tuple[Tensor, dict[str, Any]]
"""An image ``(3, H, W)`` and its target."""
Loaded = tuple[Tensor, list[dict[str, Any]]]
"""Images ``(B, 3, H, W)`` and one target for each."""


class ImageSource(Protocol):
    """What samples are drawn from, by index."""

    def __len__(self) -> int: ...

    def prepared(self, image: ImageConfig, *, train: bool) -> Callable[[int], Prepared]:
        """A function from an index to the transformed sample; it draws from torch's global generator."""

    def collate(self, samples: list[Prepared]) -> Loaded:
        """Transformed samples to a batch."""


@dataclass
class Source:
    """One split of one task."""

    task: Task
    dataset: Dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def prepared(self, image: ImageConfig, *, train: bool) -> Callable[[int], Prepared]:
        transform = self.task.transform(image, train=train)
        return lambda index: transform(self.dataset[index])

    def collate(self, samples: list[Prepared]) -> Loaded:
        return self.task.collate(samples)


class Samples(torch.utils.data.Dataset):
    """Batches of samples by key. Transforms are built where they run, so only sources travel to workers."""

    def __init__(self, sources: Mapping[str, ImageSource], image: ImageConfig, seed: int, *, train: bool) -> None:
        self.sources, self.image, self.seed, self.train = dict(sources), image, seed, train
        self.prepared: dict[str, Callable[[int], Prepared]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"prepared": {}}

    def one(self, name: str, index: int, visit: int) -> Prepared:
        """One transformed sample; the global generator is as it was afterwards."""
        if name not in self.prepared:
            self.prepared[name] = self.sources[name].prepared(self.image, train=self.train)
        before = torch.get_rng_state()
        torch.default_generator.manual_seed(key(self.seed, name, index, visit))
        try:
            return self.prepared[name](index)
        finally:
            torch.set_rng_state(before)

    def __getitems__(self, keys: Sequence[Key]) -> dict[str, Loaded] | MtpeftError:
        """The samples of a batch, collated for each source; an error is handed over, for a worker cannot raise it."""
        try:
            by_source: dict[str, list[Prepared]] = {}
            for name, index, visit in keys:
                by_source.setdefault(name, []).append(self.one(name, index, visit))
            return {name: self.sources[name].collate(samples) for name, samples in by_source.items()}
        except MtpeftError as error:
            return error


def draw(quotas: Iterable[Mapping[str, int]], cursors: Mapping[str, Cursor]) -> Iterator[list[Key]]:
    """The keys of each batch, from each source's own cursor."""
    for quota in quotas:
        yield [(name, *drawn) for name, number in quota.items() for drawn in cursors[name].take(number)]


def _as_it_is(batch: Any) -> Any:
    return batch


def _leave_signals_to_trainer(worker: int) -> None:
    """Ctrl-C and SIGTERM reach a whole group of processes; the one that trains decides when its workers end."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def batches(samples: Samples, keys: Iterable[list[Key]], *, workers: int = 0) -> Iterator[dict[str, Loaded]]:
    """One collated batch for each list of keys, in their order; loaded ahead by ``workers`` processes.

    Raises:
        MtpeftError: what reading or transforming a sample raised.
    """
    own = torch.Generator()  # or the loader draws its workers' seed from the global one
    loader = DataLoader(
        samples,
        batch_sampler=keys,
        collate_fn=_as_it_is,
        num_workers=workers,
        generator=own,
        worker_init_fn=_leave_signals_to_trainer,
    )
    for batch in loader:
        if isinstance(batch, MtpeftError):
            raise batch
        yield batch


def to_device(batch: Loaded, device: torch.device) -> Loaded:
    """The same batch on ``device``; what is no tensor in a target stays as it is."""
    images, targets = batch
    if device.type == "cpu":
        return batch
    return images.to(device, non_blocking=True), [_moved(target, device) for target in targets]


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {name: _moved(inner, device) for name, inner in value.items()}
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
