"""Training as the loop does it, on fixed batches of a few images: one stage of a case's host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtpeft.backbone.extract import evaluating
from mtpeft.peft.host import Host
from mtpeft.peft.memory import Key
from mtpeft.peft.routine import Batches, Context, TaskBatch
from mtpeft.task import Head
from mtpeft.testing.case import CLASSES, STAGED, Case
from mtpeft.training.routines import Routines, tasks_of


def train(case: Case, host: Host, tasks: Sequence[str], *, steps: int = 3, rate: float = 1e-2) -> list[float]:
    """Train as the loop does, the routines included; returns the loss of each step."""
    training = Training(case, host, tasks, steps, rate)
    training.begin()
    losses = [training.update() for _ in range(steps)]
    training.end()
    return losses


class Training:
    """A stage as the loop runs it: the routines, the losses of its tasks on fixed batches, and AdamW."""

    def __init__(
        self, case: Case, host: Host, tasks: Sequence[str], steps: int, rate: float, stage: int = 0, stages: int = 1
    ) -> None:
        self.case, self.host, self.rate = case, host, rate
        self.method = host.methods[case.name]
        self.optimizer: torch.optim.Optimizer | None = None
        self.trained: dict[str, nn.Parameter] = {}
        loss = loss_of(host)
        told = stages if self.method.declares.needs_task_count else None
        self.context = Context(host, tuple(tasks), tuple(host.tasks), stage, told, steps=steps, loss=loss)
        self.context.batches = self._batches
        self.context.load = self._load
        self.context.score = lambda task, samples: -evaluated(host, loss, batch(case, host, task))
        self.routines = Routines(self.context)

    def begin(self) -> None:
        self.routines.begin_stage()
        self.make_optimizer()

    def make_optimizer(self) -> None:
        tasks = tasks_of(self.context.tasks, self.routines.trains())
        self.host.focus(tasks)
        self.trained = self.host.trainable(tasks)
        self.optimizer = optimizer_of(self.trained, self.rate)

    def update(self) -> float:
        """One update; returns its loss, which is 0 where nothing trains and no routine watches."""
        self.host.train()
        self.host.zero_grad(set_to_none=True)
        if not self.trained and not self.routines.watch:
            return 0.0
        if self.routines.begin_update():
            self.make_optimizer()
        loss = self._backward()
        if self.optimizer is not None:
            self.optimizer.step()
        self.routines.after_step()
        self.context.step += 1
        self.context.batch = ()
        return loss

    def meet_batch(self) -> None:
        """The forward pass: every task's batch, as routines see it."""
        context = self.context
        met = {task: batch(self.case, self.host, task) for task in context.tasks}
        stops = list(accumulate(len(images) for _, images, _ in met.values()))
        rows = {task: range(*ends) for task, ends in zip(met, pairwise([0, *stops]), strict=True)}
        answers = self.host.answers(torch.cat([images for _, images, _ in met.values()]), rows)
        context.batch = tuple(
            TaskBatch(task, _keys(task, images), images, targets, answers[task].features, answers[task].outputs)
            for task, (_, images, targets) in met.items()
        )

    def _backward(self) -> float:
        self.meet_batch()
        adjusted = {b.task: self.routines.adjust(b.task, b.outputs, b.targets) for b in self.context.batch}
        terms = [cross_entropy(self.host.head_of(task), *pair) for task, pair in adjusted.items()]
        loss = torch.stack([*terms, *self.routines.penalties()]).sum()
        if loss.requires_grad:
            loss.backward()
        self.routines.after_backward()
        return float(loss.detach())

    def end(self) -> None:
        self.host.zero_grad(set_to_none=True)
        self.routines.settle()
        self.routines.end_stage()
        self.host.eval()
        self.host.focus(None)

    def _batches(self, *, train: bool = True, tasks: Sequence[str] | None = None) -> Batches:
        return [batch(self.case, self.host, task) for task in (self.context.tasks if tasks is None else tasks)]

    def _load(self, keys: Sequence[Key], visit: int) -> Batches:
        for task in dict.fromkeys(task for task, _ in keys):
            _, images, targets = batch(self.case, self.host, task)
            rows = [index for name, index in keys if name == task]
            yield task, images[rows], [targets[row] for row in rows]


def _keys(task: str, images: Tensor) -> tuple[Key, ...]:
    return tuple((task, index) for index in range(len(images)))


def batch(case: Case, host: Host, task: str) -> tuple[str, Tensor, list[dict[str, Any]]]:
    """Eight images of ``task``, each of one of its classes."""
    seed, classes = list(host.tasks).index(task), STAGED.get(task, CLASSES)
    targets = [{"label": torch.tensor(i % len(classes)), "classes": classes} for i in range(8)]
    return task, case.images(host, 8, seed), targets


def loss_of(host: Host) -> Any:
    def loss(task: str, images: Tensor, targets: list[dict[str, Any]]) -> Tensor:
        return cross_entropy(host.head_of(task), host.predict(images, task), targets)

    return loss


def cross_entropy(head: Head, outputs: Tensor, targets: list[dict[str, Any]]) -> Tensor:
    """The loss of every task of the kit, over the classes of ``head``."""
    labels = [head.classes.index(target["classes"][int(target["label"])]) for target in targets]
    return F.cross_entropy(outputs, torch.tensor(labels))


def optimizer_of(trained: Mapping[str, nn.Parameter], rate: float) -> torch.optim.Optimizer | None:
    """AdamW for what trains, or None where that is nothing."""
    return torch.optim.AdamW(list(trained.values()), rate, weight_decay=0.1) if trained else None


@torch.no_grad()
def evaluated(host: Host, loss: Any, batch: tuple[str, Tensor, list[dict[str, Any]]]) -> float:
    """The loss of a batch in evaluation mode; the host is in its own mode afterwards."""
    with evaluating(host):
        return float(loss(*batch))
