"""The training loop: an interpreter of a schedule's events."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter, process_time

from mtpeft.data.shared_images import together
from mtpeft.schedule import Batch, Begin, End, Evaluate, Event, Update
from mtpeft.task import Score
from mtpeft.training.divergence import check_gradients, check_losses
from mtpeft.training.evaluate import evaluate_together
from mtpeft.training.event_stream import EventStream
from mtpeft.training.happenings import (
    Channel,
    Evaluated,
    Listener,
    StageBegan,
    StageEnded,
    StageResumed,
    StoppedEarly,
    Stopwatch,
    Updated,
)
from mtpeft.training.optimizer import clip, rate, set_rate
from mtpeft.training.position import Position
from mtpeft.training.run import Run
from mtpeft.training.run_files import peak_memory
from mtpeft.training.stage import Stage
from mtpeft.training.validation import Validation


class Loop:
    """Trains a `Run` event by event.

    Args:
        listener: is told of everything that happens.
        after: called with each event once the position stands behind it: the place to save and to stop.
        pause: called within an evaluation, after each batch; may raise to stop there.
    """

    stage: Stage
    stage_watch: Stopwatch
    update_watch: Stopwatch

    def __init__(
        self,
        run: Run,
        listener: Listener | None = None,
        after: Callable[[Event], None] = lambda event: None,
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        self.run, self.after, self.pause = run, after, pause
        self.listener = Channel() if listener is None else listener
        self.at, self.validation = Position(), Validation(run)
        self.events = EventStream(run.events())

    def resume(self, at: Position) -> None:
        """Stand where a saved position says; what the stage itself holds is restored by who calls."""
        self.at = at
        self.events = EventStream(self.run.events(), at.events)
        if at.stage >= 0:
            self.stage = Stage(self.run, at)
        if at.open:
            self.open_stage()

    def train(self) -> None:
        """Interpret the schedule, from where the position stands to its end."""
        if self.at.open:
            self.listener.tell(StageResumed(self.at.stage, self.at.tasks, self.at.steps, self.at.step))
        self.stage_watch = Stopwatch(self.at.images)
        for event in self.events:
            self.do(event)
            self.after(event)

    def do(self, event: Event) -> None:
        """One event; then the position stands behind it."""
        started, worked = perf_counter(), process_time()
        match event:
            case Begin():
                self.begin(event)
            case Batch() if not self.at.stopped and not self.stage.idle:
                self.batch(event)
            case Update() if not self.at.stopped:
                self.update(event)
            case Evaluate() if event.final or not self.at.stopped:
                self.evaluate(event)
            case End():
                self.end(event)
        if not isinstance(event, Evaluate):
            self.at.seconds += perf_counter() - started
            self.at.cpu_seconds += process_time() - worked
        self.at.events += 1

    def begin(self, event: Begin) -> None:
        """New tasks get parts and heads, methods look at the data, and the optimizer is made for what trains now."""
        self.stage_watch = Stopwatch(self.at.images)
        self.at.enter(event)
        for name in event.tasks:
            self.run.meet(name)
        self.validation.begin()
        self.stage = Stage(self.run, self.at)
        self.run.host.eval()
        self.stage.routines.begin_stage()
        self.open_stage(event)
        self.listener.tell(StageBegan(self.at.stage, self.at.tasks, self.at.steps))

    def open_stage(self, begin: Begin | None = None) -> None:
        """Make the optimizer and the stream of batches, at a stage's beginning or in its middle."""
        self.stage.open(self.events.quotas(begin))
        self.run.host.train()

    def batch(self, event: Batch) -> None:
        """Forward and backward; each task's loss counts as its part of the whole update."""
        if not self.stage.losses:
            self.update_watch = Stopwatch(self.at.images)
            self.stage.begin_update()
        loaded = self.stage.next_batch(event)
        self.stage.keep_apart()
        with self.run.autocast():
            losses = self.stage.task_losses(loaded)
        values = check_losses(losses, self.at)
        part = portion(event)
        total = part * self.run.balancer.combine(
            {n: loss * (self.stage.shares[n] / part) for n, loss in losses.items()}
        )
        for penalty in self.stage.routines.penalties():
            total = total + part * penalty
        if total.requires_grad:
            total.backward()
        self.stage.add(values)

    def update(self, event: Update) -> None:
        """One optimizer step, and no gradient left behind; none where nothing trains."""
        stage, settings = self.stage, self.run.config.optimizer
        if stage.idle:
            self.at.step = event.step + 1
            return
        stage.aggregate()
        stage.routines.after_backward()
        norm = clip(stage.parameters, settings.clip_norm)
        check_gradients(norm, self.at)
        factor = rate(event.step, self.at.steps, round(settings.warmup * self.at.steps))
        set_rate(stage.optimizer, factor)
        stage.optimizer.step()
        stage.routines.after_step()
        stage.optimizer.zero_grad(set_to_none=True)
        losses = stage.finish_update()
        self.at.step, self.at.updates = event.step + 1, self.at.updates + 1
        measured = self.update_watch.read(self.at.images)
        self.listener.tell(Updated(self.at.stage, event.step, losses, norm, self.learning_rates(factor), measured))

    def learning_rates(self, factor: float) -> dict[str, float]:
        """The rates of one step, by method, and of ``heads``."""
        peaks = self.run.learning_rates()
        return {name: factor * peak for name, peak in {**peaks["methods"], "heads": peaks["heads"]}.items()}

    def evaluate(self, event: Evaluate) -> None:
        """Scores of the stage's tasks to decide by (validation), or of all tasks seen for the result matrix."""
        scores: dict[str, Score] = {}
        self.stage.routines.settle()
        for names in together(self.run.tasks, event.tasks).values():
            watch = Stopwatch()
            scores |= evaluate_together(self.run, names, event.split, pause=self.pause)
            for name in names:
                measured = watch.read(scores[name].count, peak_memory(self.run.device))
                place = event.stage, event.split, name, self.at.step
                self.listener.tell(Evaluated(*place, scores[name].value, scores[name].count, measured))
        if event.final:
            for name in event.tasks:
                self.run.matrix.record(event.stage, name, scores[name])
            measured = self.stage_watch.read(self.at.images, peak_memory(self.run.device))
            self.listener.tell(StageEnded(event.stage, self.at.tasks, measured))
        elif self.validation.update(scores):
            self.at.stopped = True
            self.listener.tell(StoppedEarly(event.stage, self.at.step))

    def end(self, event: End) -> None:
        """What the stage's tasks own is finished; of several saved weights, the best may be taken."""
        self.validation.end()
        self.run.host.eval()
        self.stage.routines.end_stage()
        self.at.open = False


def portion(event: Batch) -> float:
    """Which part of its update a batch is."""
    return sum(event.quota.values()) / sum((event.whole or event.quota).values())
