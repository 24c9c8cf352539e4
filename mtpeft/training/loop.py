"""The training loop: an interpreter of a schedule's events."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from time import perf_counter, process_time
from typing import Any

import torch
from torch import Tensor

from mtpeft.data.loading import Loaded
from mtpeft.schedule import Batch, Begin, End, Evaluate, Event, Update
from mtpeft.training.divergence import check_gradients, check_losses
from mtpeft.training.evaluate import evaluate
from mtpeft.training.optimizer import clip, rate, set_rate
from mtpeft.training.progress import Progress
from mtpeft.training.run import Run
from mtpeft.training.stage import Position, Stage
from mtpeft.training.validation import Validation


class Loop:
    """Trains a `Run` event by event.

    Args:
        log: called with one plain dictionary for each thing that happens.
        after: called with each event once the position stands behind it: the place to save and to stop.
        pause: called within an evaluation, after each batch; may raise to stop there.
    """

    stage: Stage

    def __init__(
        self,
        run: Run,
        progress: Progress,
        log: Callable[[dict[str, Any]], None] = lambda entry: None,
        after: Callable[[Event], None] = lambda event: None,
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        self.run, self.progress, self.log, self.after, self.pause = run, progress, log, after, pause
        self.at, self.validation = Position(), Validation(run)

    def train(self) -> None:
        """Interpret the schedule, from where the position stands to its end."""
        for event in islice(self.run.events(), self.at.events, None):
            self.do(event)
            self.after(event)

    def do(self, event: Event) -> None:
        """One event; then the position stands behind it."""
        started, worked = perf_counter(), process_time()
        match event:
            case Begin():
                self.begin(event)
            case Batch() if not self.at.stopped:
                self.batch(event)
            case Update() if not self.at.stopped:
                self.update(event)
            case Evaluate() if event.final or not self.at.stopped:
                self.evaluate(event)
            case End():
                self.end(event)
        if isinstance(event, Begin | Batch | Update):
            self.at.seconds += perf_counter() - started
            self.at.cpu_seconds += process_time() - worked
        self.at.events += 1

    def begin(self, event: Begin) -> None:
        """New tasks get parts and heads, methods look at the data, and the optimizer is made for what trains now."""
        self.at.enter(event)
        for name in event.tasks:
            self.run.meet(name)
        self.validation.begin()
        self.stage = Stage(self.run, self.at)
        self.run.host.eval()
        for method in self.run.host.methods.values():
            method.calibrate(self.stage.context)
        for method in self.run.host.methods.values():
            method.begin_stage(self.stage.context)
        self.open_stage()

    def open_stage(self) -> None:
        """Make the optimizer and the stream of batches, at a stage's beginning or in its middle."""
        self.stage.open()
        self.run.host.train()
        self.progress.begin(self.at.stage, self.at.tasks, self.at.steps, self.at.step)

    def batch(self, event: Batch) -> None:
        """Forward and backward; each task's loss counts as its part of the whole update."""
        if not self.stage.found:
            self.stage.begin_update()
        loaded = self.stage.next_batch()
        self.stage.keep_apart()
        with self.run.autocast():
            losses = self.losses(loaded)
        found = check_losses(losses, self.at)
        part = portion(event)
        total = part * self.run.balancer.combine({n: loss * (event.share(n) / part) for n, loss in losses.items()})
        for method in self.run.host.methods.values():
            if (penalty := method.penalty(self.stage.context)) is not None:
                total = total + part * penalty
        if total.requires_grad:
            total.backward()
        self.stage.add(found, event)

    def losses(self, loaded: Mapping[str, Loaded]) -> dict[str, Tensor]:
        """The mean loss of each task of a batch, all of whose images take one pass."""
        images = torch.cat([images for images, _ in loaded.values()])  # (B, 3, H, W)
        tasks = [name for name, (images, _) in loaded.items() for _ in range(len(images))]
        features = self.run.host(images, tasks if len(loaded) > 1 else tasks[0])
        losses, start = {}, 0
        for name, (images, targets) in loaded.items():
            own = features[start : start + len(images)]
            losses[name] = self.run.loss(name, own, targets)
            start += len(images)
        return losses

    def update(self, event: Update) -> None:
        """One optimizer step, and no gradient left behind."""
        stage, settings = self.stage, self.run.config.optimizer
        stage.aggregate()
        for method in self.run.host.methods.values():
            method.after_backward(stage.context)
        norm = clip(stage.parameters, settings.clip_norm)
        check_gradients(norm, self.at)
        set_rate(stage.optimizer, rate(event.step, self.at.steps, round(settings.warmup * self.at.steps)))
        stage.optimizer.step()
        for method in self.run.host.methods.values():
            method.after_step(stage.context)
        stage.optimizer.zero_grad(set_to_none=True)
        losses = stage.finish_update()
        self.at.step, self.at.updates = event.step + 1, self.at.updates + 1
        self.log({"event": "update", "stage": self.at.stage, "step": event.step, "losses": losses, "norm": norm})
        self.progress.step(event.step, losses)

    def evaluate(self, event: Evaluate) -> None:
        """Scores of the stage's tasks to decide by (validation), or of all tasks seen for the result matrix."""
        scores = {}
        for name in event.tasks:
            score = scores[name] = evaluate(self.run, name, event.split, pause=self.pause)
            self.progress.score(name, event.split, score)
            entry = {"event": "evaluate", "stage": event.stage, "split": event.split, "task": name}
            self.log(entry | {"step": self.at.step, "value": score.value, "count": score.count})
        if event.final:
            for name, score in scores.items():
                self.run.matrix.record(event.stage, name, score)
        elif self.validation.update(scores):
            self.at.stopped = True
            self.progress.say(f"no task improved on validation: stage {event.stage + 1} stops at update {self.at.step}")

    def end(self, event: End) -> None:
        """What the stage's tasks own is finished; of several saved weights, the best may be taken."""
        self.validation.end()
        for method in self.run.host.methods.values():
            method.end_stage(self.stage.context)
        self.run.host.eval()
        self.at.open = False


def portion(event: Batch) -> float:
    """Which part of its update a batch is."""
    return sum(event.quota.values()) / sum((event.whole or event.quota).values())
