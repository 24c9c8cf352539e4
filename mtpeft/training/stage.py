"""What exists between a stage's beginning and its end only: the optimizer, the stream of batches, the routines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import tee

import torch
from torch import Tensor, nn

from mtpeft.addresses import ParameterKey
from mtpeft.data.loading import ImageSource, Loaded, Samples, Source, batches, draw, to_device
from mtpeft.data.shared_images import SharedImages, together
from mtpeft.keyed_random import Cursor
from mtpeft.peft.gradients import TaskGradients
from mtpeft.peft.memory import Key
from mtpeft.peft.routine import Batches, Context, Targets, TaskBatch
from mtpeft.schedule import Batch
from mtpeft.training.evaluate import load, measure
from mtpeft.training.labelled import LabelledImages
from mtpeft.training.optimizer import build_optimizer, group_counters, set_group_counters
from mtpeft.training.position import Position
from mtpeft.training.routines import Routines, tasks_of
from mtpeft.training.run import Run

_PLAIN, _REPLAYED = -1, -2
"""Visits below those of training (0 and more): passes over the data, and samples by key, disturb no draw."""


class Stage:
    """The optimizer, the stream of batches and the context of a stage."""

    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    batches: Iterator[tuple[dict[str, Loaded], list[tuple[str, int, int]]]]
    ahead: dict[str, Cursor]
    """Of images that tasks share: one update ahead of the loader."""

    def __init__(self, run: Run, at: Position) -> None:
        self.run, self.at = run, at
        self.context = Context(
            run.host,
            tasks=at.tasks,
            seen=(*run.inherited, *at.seen),
            stage=at.stage,
            stages=run.stages(),
            step=at.step,
            steps=at.steps,
            classes={name: tuple(run.dataset(name, "train").classes) for name in at.tasks},
            batches=self.one_pass,
            load=self.by_key,
            loss=self.loss,
            score=self.score,
            seed=run.config.seed,
        )
        self.routines = Routines(self.context)
        self.met = tasks_of(at.tasks, at.seen)
        earlier = {name: (name,) for name in self.met if name not in at.tasks}
        self.tasks_of = together(run.tasks, at.tasks) | earlier
        self.sources: dict[str, ImageSource] = {}
        run.balancer.begin({name: run.tasks[name].loss_weight for name in at.seen}, at.tasks)
        self.batch_losses: list[tuple[str, Tensor]] = []
        self.batch_shares: list[float] = []
        self.losses: dict[str, float] = {}
        self.shared: dict[str, SharedImages] = {}
        self.labelled: dict[str, int] = {}
        self.shares: dict[str, float] = {}
        self.taken: list[tuple[LabelledImages, dict[str, float]]] = []
        self.validation: dict[tuple[str, int], list[Loaded]] = {}
        self.apart = ExitStack()
        self.gradients: TaskGradients | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing trains and no routine wants to see the batches."""
        trained = (name for name in self.parameters if ParameterKey.parse(name).kind != "balancer")
        return next(trained, None) is None and not self.routines.watch

    # --- what trains

    def open(self, quotas: Iterable[Mapping[str, int]]) -> None:
        """Make the optimizer of what these tasks train, and the batches of the rest of the stage."""
        self.make_optimizer()
        run, seed, drawn = self.run, self.run.data.seed, self.at.drawn
        self.sources = {name: run.data.source(tasks, "train") for name, tasks in self.tasks_of.items()}

        def cursors() -> dict[str, Cursor]:
            return {n: Cursor(seed, n, len(source), drawn.get(n, 0)) for n, source in self.sources.items()}

        samples = Samples(self.sources, run.backbone.image, seed, train=True)
        keys, again = tee(draw(map(self.per_source, quotas), cursors()))
        self.batches = zip(batches(samples, keys, workers=run.config.workers), again, strict=False)
        self.shared = {n: source for n, source in self.sources.items() if isinstance(source, SharedImages)}
        self.ahead = {n: cursor for n, cursor in cursors().items() if n in self.shared}

    def per_source(self, quota: Mapping[str, int]) -> dict[str, int]:
        """How many samples of each source a quota of tasks takes: of images that tasks share, as many as one wants."""
        holder = {task: source for source, tasks in self.tasks_of.items() for task in tasks}
        found: dict[str, int] = {}
        for name, number in quota.items():
            found[holder[name]] = max(number, found.get(holder[name], 0))
        return found

    def make_optimizer(self) -> None:
        """For what these tasks, and those that a routine adds, train now; nothing else gets a gradient."""
        run = self.run
        tasks = tasks_of(self.at.tasks, self.routines.trains())
        run.host.focus(tasks)
        learned = {str(ParameterKey("balancer", str(i))): p for i, p in enumerate(run.balancer.parameters())}
        trained = run.host.trainable(tasks)
        self.parameters = trained | learned
        self.at.parameters = max(self.at.parameters, sum(parameter.numel() for parameter in trained.values()))
        self.at.trained |= {ParameterKey.parse(name).holder: self.at.stage for name in self.parameters}
        rates = {name: run.learning_rate(name) for name in self.parameters}
        decay = run.config.optimizer.weight_decay
        self.optimizer = build_optimizer(run.optimizer, self.parameters, rates, weight_decay=decay)

    def begin_update(self) -> None:
        """Let routines prepare the update; where one changed what trains, the optimizer follows."""
        if self.routines.begin_update():
            moments, counted = self.optimizer.state, group_counters(self.optimizer)
            self.make_optimizer()
            set_group_counters(self.optimizer, counted)
            self.optimizer.state.update({p: moments[p] for p in self.parameters.values() if p in moments})

    # --- batches and their losses

    def next_batch(self, event: Batch) -> LabelledImages:
        """Images with the targets of each task, on the run's device."""
        loaded, keys = next(self.batches)
        for name, (images, _) in loaded.items():
            self.at.drawn[name] = self.at.drawn.get(name, 0) + len(images)
            self.at.images += len(images)
        moved = {name: to_device(one, self.run.device) for name, one in loaded.items()}
        batch = LabelledImages.of(moved, keys, self.sources)
        if not self.batch_losses:
            self.labelled = self._labelled(self.per_source(event.whole or event.quota))
        self.shares = {
            task: len(rows) / self.labelled[task] if task in self.labelled else event.share(task)
            for task, rows in batch.rows.items()
        }
        return batch

    def _labelled(self, quota: Mapping[str, int]) -> dict[str, int]:
        """How many of an update's shared images each task labels."""
        drawn = {name: cursor.take(quota[name]) for name, cursor in self.ahead.items() if name in quota}
        labels = (self.shared[name].samples[index] for name, keys in drawn.items() for index, _ in keys)
        return dict(Counter(task for own in labels for task in own))

    def task_losses(self, batch: LabelledImages) -> dict[str, Tensor]:
        """The mean loss of each task of a batch, all of whose images take one pass; routines see the batch."""
        answers = self.run.host.answers(batch.images, batch.rows)
        self.context.batch = tuple(
            TaskBatch(
                name, batch.keys[name], batch.images_of(name), batch.targets[name], answer.features, answer.outputs
            )
            for name, answer in answers.items()
        )
        adjusted = {b.task: self.routines.adjust(b.task, b.outputs, b.targets) for b in self.context.batch}
        return {name: self.run.loss(name, *adjusted[name]) for name in answers}

    def keep_apart(self) -> None:
        """Until the update, keep each task's gradient of the shared parts apart, where the balancer asks for it."""
        wanted = self.run.balancer.needs_task_gradients and self.run.host.shared_parameters()
        if wanted and self.gradients is None:
            self.gradients = self.apart.enter_context(self.run.host.task_gradients())

    def read_losses(self, values: Sequence[float]) -> None:
        """Take the losses of the update's batches, now that they are numbers."""
        for (name, _), value, share in zip(self.batch_losses, values, self.batch_shares, strict=True):
            self.losses[name] = self.losses.get(name, 0.0) + value * share

    def aggregate(self) -> None:
        """Let the balancer say what the gradient of the shared parts is; what penalties gave them is added."""
        if self.gradients is None:
            return
        losses = self.mean_losses()
        tasks = [task for task in self.gradients.tasks if task is not None]
        step = self.run.balancer.aggregate(self.gradients.jacobian(), tasks, {task: losses[task] for task in tasks})
        self.gradients.write(step)
        self.apart.close()
        self.gradients = None

    def backward(self, loss: Tensor, penalties: Sequence[Tensor]) -> None:
        """Gradients of one batch; those of penalties belong to no task."""
        if self.gradients is None:
            loss, penalties = sum(penalties, loss), ()
        if loss.requires_grad:
            loss.backward(retain_graph=bool(penalties))
        penalty = sum(penalties, torch.zeros((), device=self.run.device))
        if self.gradients is not None and penalty.requires_grad:
            with self.gradients.set_aside():
                penalty.backward()

    def add(self, batch: LabelledImages, losses: Mapping[str, Tensor]) -> None:
        """Keep what a batch gave, and what part of the update it is of each task."""
        self.batch_losses += [(name, loss.detach()) for name, loss in losses.items()]
        self.batch_shares += [self.shares[name] for name in losses]
        if self.run.balancer.needs_losses_again:
            self.taken.append((batch, self.shares))

    def after_step(self) -> None:
        """Tell routines and balancer that the optimizer has stepped."""
        self.routines.after_step()
        balancer = self.run.balancer
        balancer.after_step(self.mean_losses(), self.losses_again() if balancer.needs_losses_again else {})

    def mean_losses(self) -> dict[str, Tensor]:
        """Each task's mean loss in the update, before its weight."""
        return {name: torch.as_tensor(value, device=self.run.device) for name, value in self.losses.items()}

    @torch.no_grad()
    def losses_again(self) -> dict[str, Tensor]:
        """The losses of the update's batches with the parameters as they are now."""
        again: dict[str, Tensor] = {}
        for batch, shares in self.taken:
            with self.run.autocast():
                for name, loss in self.task_losses(batch).items():
                    again[name] = again.get(name, 0.0) + loss * shares[name]
        return again

    def finish_update(self) -> dict[str, float]:
        """The losses of the update that was made."""
        losses, self.losses = self.losses, {}
        self.batch_losses, self.batch_shares, self.taken = [], [], []
        self.context.step, self.context.batch = self.at.step + 1, ()
        return losses

    # --- what routines ask for

    def one_pass(self, *, train: bool = True, tasks: Sequence[str] | None = None) -> Batches:
        """Every training sample once, task by task, in order."""
        for name in self.at.tasks if tasks is None else tasks:
            size, count = self.run.tasks[name].batch_size, len(self.run.dataset(name, "train"))
            keys = [(name, index, _PLAIN) for index in range(count)]
            cut = (keys[start : start + size] for start in range(0, len(keys), size))
            for batch in batches(self._samples([name], train=train), cut, workers=self.run.config.workers):
                yield (name, *to_device(batch[name], self.run.device))

    def by_key(self, keys: Sequence[Key], visit: int) -> Batches:
        """Samples by key, as one batch for each task."""
        names = list(dict.fromkeys(task for task, _ in keys))
        for name in names:
            own = [(name, index, _REPLAYED - visit) for task, index in keys if task == name]
            for batch in batches(self._samples([name], train=True), [own]):
                yield (name, *to_device(batch[name], self.run.device))

    def loss(self, name: str, images: Tensor, targets: Targets) -> Tensor:
        """A task's own loss on the host's current outputs."""
        with self.run.autocast():
            return self.run.loss(name, self.run.host.predict(images, name), targets)

    def score(self, name: str, samples: int) -> float | None:
        """A task's metric on validation samples, which stay loaded for the stage; higher is better."""
        if (name, samples) not in self.validation:
            self.validation[name, samples] = list(load(self.run, name, "val", most=samples))
        value = measure(self.run, name, self.validation[name, samples]).value
        return None if value is None else self.run.signed(name, value)

    def _samples(self, names: Sequence[str], *, train: bool) -> Samples:
        sources = {name: Source(self.run.tasks[name], self.run.dataset(name, "train")) for name in names}
        return Samples(sources, self.run.backbone.image, self.run.data.seed, train=train)
