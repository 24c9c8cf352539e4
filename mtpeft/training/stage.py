"""Where a training stands, and what exists between a stage's beginning and its end only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mtpeft.addresses import ParameterKey
from mtpeft.data.loading import Loaded, Samples, Source, batches, draw, to_device
from mtpeft.peft.method import Context
from mtpeft.schedule import Batch, Begin, Cursor, End
from mtpeft.training.evaluate import load, measure
from mtpeft.training.optimizer import build_optimizer

if TYPE_CHECKING:
    from mtpeft.peft.gradients import TaskGradients
    from mtpeft.training.run import Run


@dataclass
class Position:
    """Where a training stands, in plain values that are saved with the state.

    Attributes:
        events: events of the schedule that are done.
        stage, tasks, steps: the last `Begin`.
        step: updates made in this stage.
        open: between `Begin` and `End`.
        stopped: this stage was stopped early; the rest of its updates is passed over.
        seen: tasks met so far.
        drawn: training samples drawn of each task.
        updates, images, seconds: of the whole training, evaluation not counted.
        log_bytes: length of the log.
    """

    events: int = 0
    stage: int = -1
    tasks: tuple[str, ...] = ()
    steps: int = 0
    step: int = 0
    open: bool = False
    stopped: bool = False
    seen: tuple[str, ...] = ()
    drawn: dict[str, int] = field(default_factory=dict)
    updates: int = 0
    images: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    log_bytes: int = 0

    def enter(self, event: Begin) -> None:
        self.stage, self.tasks, self.steps, self.step = event.stage, event.tasks, event.steps, 0
        self.open, self.stopped = True, False
        self.seen = (*self.seen, *(name for name in event.tasks if name not in self.seen))

    @staticmethod
    def from_json(data: dict[str, Any]) -> Position:
        return Position(**data | {name: tuple(data[name]) for name in ("tasks", "seen")})


class Stage:
    """The optimizer, the stream of batches and the context of a stage."""

    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.AdamW
    batches: Iterator[dict[str, Loaded]]

    def __init__(self, run: Run, at: Position) -> None:
        self.run, self.at = run, at
        sources = {name: Source(run.tasks[name], run.dataset(name, "train")) for name in at.tasks}
        self.samples = Samples(sources, run.backbone.image, run.data_seed, train=True)
        self.context = Context(
            run.host,
            tasks=at.tasks,
            seen=(*run.inherited, *at.seen),
            stage=at.stage,
            stages=run.stages(),
            step=at.step,
            steps=at.steps,
            batches=self.one_pass,
            loss=self.loss,
            score=self.score,
            seed=run.config.seed,
        )
        run.balancer.begin({name: run.tasks[name].loss_weight for name in at.tasks})
        self.found: dict[str, float] = {}
        self.held: dict[tuple[str, int], list[Loaded]] = {}
        self.apart = ExitStack()
        self.gradients: TaskGradients | None = None

    def open(self) -> None:
        """Make the optimizer of what these tasks train, and the batches of the rest of the stage."""
        self.make_optimizer()
        cursors = {
            name: Cursor(self.run.data_seed, name, len(source.dataset), self.at.drawn.get(name, 0))
            for name, source in self.samples.sources.items()
        }
        self.batches = batches(self.samples, draw(self.quotas(), cursors), workers=self.run.config.workers)

    def make_optimizer(self) -> None:
        """For what these tasks train now."""
        run, settings = self.run, self.run.config.optimizer
        learned = {str(ParameterKey("balancer", str(i))): p for i, p in enumerate(run.balancer.parameters())}
        self.parameters = run.host.trainable(list(self.at.tasks)) | learned
        rates = {name: run.learning_rate(name) for name in self.parameters}
        self.optimizer = build_optimizer(
            self.parameters, rates, betas=settings.betas, weight_decay=settings.weight_decay
        )

    def begin_update(self) -> None:
        """Let methods prepare the update; where one changed what trains, the optimizer follows."""
        changed = [method.begin_update(self.context) for method in self.run.host.methods.values()]
        if any(changed):
            moments = self.optimizer.state
            self.make_optimizer()
            self.optimizer.state.update({p: moments[p] for p in self.parameters.values() if p in moments})

    def quotas(self) -> Iterator[dict[str, int]]:
        """The quotas of the rest of the stage, from the schedule's own events."""
        rest = islice(self.run.events(), self.at.events, None)
        for event in takewhile(lambda event: not isinstance(event, End), rest):
            if isinstance(event, Batch):
                yield dict(event.quota)

    def next_batch(self) -> dict[str, Loaded]:
        batch = next(self.batches)
        for name, (images, _) in batch.items():
            self.at.drawn[name] = self.at.drawn.get(name, 0) + len(images)
            self.at.images += len(images)
        return {name: to_device(loaded, self.run.device) for name, loaded in batch.items()}

    def keep_apart(self) -> None:
        """Until the update, keep each task's gradient of the shared parts apart, where the balancer asks for it."""
        if self.run.balancer.needs_task_gradients and self.gradients is None:
            self.gradients = self.apart.enter_context(self.run.host.task_gradients())

    def aggregate(self) -> None:
        """Let the balancer say what the gradient of the shared parts is; what penalties gave them is added."""
        if self.gradients is None:
            return
        others = {p: p.grad for p in self.gradients.parameters.values() if p.grad is not None}
        self.gradients.write(self.run.balancer.aggregate(self.gradients.jacobian()))
        for parameter, gradient in others.items():
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        self.apart.close()
        self.gradients = None

    def add(self, losses: dict[str, float], event: Batch) -> None:
        """Keep what a batch gave, as its part of the update."""
        for name, value in losses.items():
            self.found[name] = self.found.get(name, 0.0) + value * event.share(name)

    def finish_update(self) -> dict[str, float]:
        """The losses of the update that was made."""
        losses, self.found = self.found, {}
        self.context.step = self.at.step + 1
        return losses

    def one_pass(self) -> Iterator[tuple[str, Tensor, list[dict[str, Any]]]]:
        """Every training sample once, task by task, in order; disturbs no draw of the training."""
        for name, source in self.samples.sources.items():
            size = self.run.tasks[name].batch_size
            keys = [(name, index, -1) for index in range(len(source.dataset))]
            cut = (keys[start : start + size] for start in range(0, len(keys), size))
            for batch in batches(self.samples, cut, workers=self.run.config.workers):
                yield (name, *to_device(batch[name], self.run.device))

    def loss(self, name: str, images: Tensor, targets: list[dict[str, Any]]) -> Tensor:
        """A task's own loss on the host's current outputs."""
        with self.run.autocast():
            return self.run.loss(name, self.run.host(images, name), targets)

    def score(self, name: str, samples: int) -> float | None:
        """A task's metric on validation samples, which stay loaded for the stage; higher is better."""
        if (name, samples) not in self.held:
            self.held[name, samples] = list(load(self.run, name, "val", most=samples))
        value = measure(self.run, name, self.held[name, samples]).value
        return None if value is None else self.run.signed(name, value)
