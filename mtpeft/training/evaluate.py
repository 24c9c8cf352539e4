"""Evaluation: one task on one split, the same whatever the batch size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtpeft.backbone.extract import evaluating
from mtpeft.data.loading import Loaded, Samples, Source, batches, to_device
from mtpeft.task import Score, spread
from mtpeft.training.labelled import LabelledImages
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


def evaluate_together(
    run: Run,
    names: Sequence[str],
    split: str,
    *,
    batch_size: int | None = None,
    pause: Callable[[], None] = lambda: None,
) -> dict[str, Score]:
    """`evaluate` for tasks that share their images, or one task: what they share runs once for each image."""
    if len(names) == 1:
        return {names[0]: evaluate(run, names[0], split, batch_size=batch_size, pause=pause)}
    source, size = run.data.shared(names, split), batch_size or min(run.tasks[name].batch_size for name in names)
    samples = Samples({"images": source}, run.backbone.image, run.data.seed, train=False)
    keys = [
        [("images", i, 0) for i in range(len(source))[start : start + size]] for start in range(0, len(source), size)
    ]
    metrics = {name: run.tasks[name].metric(run.host.head_of(name).classes) for name in names}
    with evaluating(run.host):
        for loaded, drawn in zip(batches(samples, keys, workers=run.config.workers), keys, strict=True):
            moved = {name: to_device(batch, run.device) for name, batch in loaded.items()}
            batch = LabelledImages.of(moved, drawn, samples.sources)
            for name, predictions in predict_on(run, batch.images, batch.rows, batch.targets).items():
                metrics[name].update(predictions, batch.targets[name])
            pause()
    return {name: metric.compute() for name, metric in metrics.items()}


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
def predict_on(
    run: Run, images: Tensor, rows: Mapping[str, Sequence[int]], targets: Mapping[str, list[dict[str, Any]]]
) -> dict[str, list[dict[str, Any]]]:
    """`predict` for several tasks, each on its ``rows`` of the images: what they share runs once."""
    with run.autocast():
        outputs = run.host.predict(images, rows)
    return {name: run.tasks[name].decode(run.host.head_of(name), own, targets[name]) for name, own in outputs.items()}


@torch.no_grad()
def predict(run: Run, name: str, images: Tensor, targets: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Decoded predictions for images ``(B, 3, H, W)``; the host is in evaluation mode."""
    with run.autocast():
        outputs = run.host.predict(images, name)
    return run.tasks[name].decode(run.host.head_of(name), outputs, targets)
