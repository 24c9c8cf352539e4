"""Evaluation: one task on one split, the same whatever the batch size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mtpeft.task import Score
from mtpeft.training.data import Samples, Source, batches, to_device
from mtpeft.training.run import Run


def evaluate(
    run: Run, name: str, split: str, *, batch_size: int | None = None, pause: Callable[[], None] = lambda: None
) -> Score:
    """A task's metric on a split, with the host in evaluation mode (and back in its own mode afterwards).

    Args:
        batch_size: samples per pass; the task's own where not given. It changes nothing in the result.
        pause: called after each pass.
    """
    task, dataset = run.tasks[name], run.dataset(name, split)
    size = batch_size or task.batch_size
    samples = Samples({name: Source(task, dataset)}, run.backbone.image, run.data_seed, train=False)
    keys = [(name, index, 0) for index in range(len(dataset))]
    cut = [keys[start : start + size] for start in range(0, len(keys), size)]
    metric = task.metric(run.host.head_of(name).classes)
    training = run.host.training
    run.host.eval()
    try:
        for batch in batches(samples, cut, workers=run.config.workers):
            images, targets = to_device(batch[name], run.device)
            metric.update(predict(run, name, images, targets), targets)
            pause()
    finally:
        run.host.train(training)
    return metric.compute()


@torch.no_grad()
def predict(run: Run, name: str, images: Tensor, targets: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Decoded predictions for images ``(B, 3, H, W)``.

    Tasks of a group are told apart by their shared head alone: the host is not told which one it is.
    """
    task, head = run.tasks[name], run.host.head_of(name)
    with run.autocast():
        outputs = head(run.host(images, None if task.group else name))
    return task.decode(head, outputs, targets)
