"""Evaluation: one task on one split, the same whatever the batch size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from mtpeft.backbone.extract import evaluating
from mtpeft.data.loading import Loaded, Samples, Source, batches, to_device
from mtpeft.task import Score, spread
from mtpeft.training.run import Run


def evaluate(
    run: Run, name: str, split: str, *, batch_size: int | None = None, pause: Callable[[], None] = lambda: None
) -> Score:
    """A task's metric on a split, with the host in evaluation mode (and back in its own mode afterwards).

    Args:
        batch_size: samples per pass; the task's own where not given. It changes nothing in the result.
        pause: called after each pass.
    """
    return measure(run, name, load(run, name, split, batch_size=batch_size), pause)


def load(
    run: Run, name: str, split: str, *, batch_size: int | None = None, most: int | None = None
) -> Iterator[Loaded]:
    """Batches of a task's split, prepared for evaluation.

    Args:
        most: take at most this many samples, evenly spread over the split.
    """
    task, dataset = run.tasks[name], run.dataset(name, split)
    size, count = batch_size or task.batch_size, len(dataset)
    samples = Samples({name: Source(task, dataset)}, run.backbone.image, run.data.seed, train=False)
    keys = [(name, index, 0) for index in spread(count, count if most is None else most)]
    cut = [keys[start : start + size] for start in range(0, len(keys), size)]
    for batch in batches(samples, cut, workers=run.config.workers):
        yield to_device(batch[name], run.device)


def measure(run: Run, name: str, loaded: Iterable[Loaded], pause: Callable[[], None] = lambda: None) -> Score:
    """A task's metric on batches of `load`, with the host in evaluation mode meanwhile."""
    metric = run.tasks[name].metric(run.host.head_of(name).classes)
    with evaluating(run.host):
        for images, targets in loaded:
            metric.update(predict(run, name, images, targets), targets)
            pause()
    return metric.compute()


@torch.no_grad()
def predict(run: Run, name: str, images: Tensor, targets: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Decoded predictions for images ``(B, 3, H, W)``; the host is in evaluation mode."""
    with run.autocast():
        outputs = run.host.predict(images, name)
    return run.tasks[name].decode(run.host.head_of(name), outputs, targets)
