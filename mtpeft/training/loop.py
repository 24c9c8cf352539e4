"""The training loop: an interpreter of a schedule's events."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from time import perf_counter, process_time

from mtpeft.data.shared_images import together
from mtpeft.schedule import Batch, Begin, End, Evaluate, Event, Update
from mtpeft.task import Score
from mtpeft.training.costs import record_stage
from mtpeft.training.divergence import check_gradients, check_losses
from mtpeft.training.evaluate import evaluate, evaluate_together
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
        with nullcontext() if isinstance(event, Evaluate) else self.timed(updating=isinstance(event, Batch | Update)):
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
        self.at.events += 1

    @contextmanager
    def timed(self, *, updating: bool = False) -> Iterator[None]:
        """Count the time inside as time of training."""
        started, worked = perf_counter(), process_time()
        yield
        seconds = perf_counter() - started
        self.at.seconds += seconds
        self.at.cpu_seconds += process_time() - worked
        self.at.update_seconds += seconds if updating else 0.0

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
        if not self.stage.batch_losses:
            self.update_watch = Stopwatch(self.at.images)
            self.stage.begin_update()
        loaded = self.stage.next_batch(event)
        self.stage.keep_apart()
        with self.run.autocast():
            losses = self.stage.task_losses(loaded)
        part, whole = portion(event, event.quota), portion(event, event.whole or event.quota)
        shares = self.stage.shares
        total = part * self.run.balancer.combine({n: loss * (shares[n] / part) for n, loss in losses.items()})
        penalties = [whole * penalty for penalty in self.stage.routines.penalties()]
        self.stage.backward(total, penalties)
        self.stage.add(loaded, losses)

    def update(self, event: Update) -> None:
        """One optimizer step, and no gradient left behind; none where nothing trains."""
        stage, settings = self.stage, self.run.config.optimizer
        if stage.idle:
            self.at.step = event.step + 1
            return
        stage.read_losses(check_losses(stage.batch_losses, self.at))
        stage.aggregate()
        stage.routines.after_backward()
        norm = clip(stage.parameters, settings.clip_norm)
        check_gradients(norm, self.at)
        factor = rate(event.step, self.at.steps, round(settings.warmup * self.at.steps))
        set_rate(stage.optimizer, factor)
        stage.optimizer.step()
        stage.after_step()
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
        with self.timed():
            self.stage.routines.settle()
        scores: dict[str, Score] = {}
        for names in together(self.run.tasks, event.tasks).values():
            scores |= self.scores(event, names, self.pause)
        if event.final:
            self.end_row(event, scores)
        elif event.probe:
            for name, score in scores.items():
                self.run.matrix.record_probe(event.stage, self.at.step, name, score)
        elif self.validation.update(scores):
            self.at.stopped = True
            self.listener.tell(StoppedEarly(event.stage, self.at.step))

    def scores(self, event: Evaluate, names: Sequence[str], pause: Callable[[], None]) -> dict[str, Score]:
        """The scores of one task, or of several that share their images, which are told."""
        watch = Stopwatch()
        scores = evaluate_together(self.run, names, event.split, pause=pause)
        for name, score in scores.items():
            measured = watch.read(score.count, peak_memory(self.run.device))
            place = event.stage, event.split, name, self.at.step
            self.listener.tell(Evaluated(*place, score.value, score.count, measured))
        return scores

    def end_row(self, event: Evaluate, scores: Mapping[str, Score]) -> None:
        """A row of the result matrix is whole, and the stage's costs are known."""
        record_stage(self.run, self.at)
        for name in event.tasks:
            self.run.matrix.record(event.stage, name, scores[name])
        for name in event.ahead:
            self.look_ahead(event, name)
        measured = self.stage_watch.read(self.at.images, peak_memory(self.run.device))
        self.listener.tell(StageEnded(event.stage, self.at.tasks, measured))

    def look_ahead(self, event: Evaluate, name: str) -> None:
        """What a task of the next stage reaches before it trains; without any part, that is its floor.

        Nothing may stop between the two: a resumed run would find the task met.
        """
        matrix = self.run.matrix
        self.run.meet(name)
        [score] = self.scores(event, [name], pause=lambda: None).values()
        with self.run.host.running.pass_state.silent():
            floor = evaluate(self.run, name, event.split).value
        matrix.record(event.stage, name, score)
        matrix.tasks[name] = replace(matrix.tasks[name], floor=floor)

    def end(self, event: End) -> None:
        """What the stage's tasks own is finished; of several saved weights, the best may be taken."""
        self.validation.end()
        self.run.host.eval()
        self.stage.routines.end_stage()
        self.at.open = False


def portion(event: Batch, tasks: Iterable[str]) -> float:
    """Which part of its update's samples of some tasks a batch has."""
    whole = event.whole or event.quota
    return sum(event.quota.values()) / sum(whole[name] for name in tasks)
