"""One training from its folder's first file to its last, through every way of being interrupted."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mtpeft.config import Config
from mtpeft.data.split_classes import split_classes
from mtpeft.evaluation import ResultMatrix
from mtpeft.files import sealed, within, write_file, write_folder, write_json
from mtpeft.locks import Lock
from mtpeft.schedule import Batch, Begin, Evaluate, Event, Update
from mtpeft.training import checkpoint
from mtpeft.training.continue_from import Inheritance
from mtpeft.training.costs import costs
from mtpeft.training.happenings import Channel, Listener, Measured, Remark, RunBegan, RunEnded, Saved
from mtpeft.training.listeners import Loggers, Observers
from mtpeft.training.log import Log
from mtpeft.training.loggers import Logger, make_loggers
from mtpeft.training.loop import Loop
from mtpeft.training.manifest import Manifest, refuse_other_data
from mtpeft.training.preflight import check_training
from mtpeft.training.progress import Quiet
from mtpeft.training.run import Run
from mtpeft.training.run_files import first_change, is_untrained, refuse_changes, refuse_existing
from mtpeft.training.setup import setup
from mtpeft.training.signals import Signals

_TENSORS = ("optimizer", "balancer", "random")


class Session:
    """A `Loop` with a folder: saves, resumes, stops when it is asked to, and writes what is left in the end.

    Use `start`, `resume` or `open`, then `train`. Until its training ends, its folder is locked.
    """

    def __init__(self, run: Run, lock: Lock, progress: Listener | None, loggers: Mapping[str, Logger] | None) -> None:
        self.run, self.lock, self.progress = run, lock, progress or Quiet()
        made = make_loggers(run.config.loggers) if loggers is None else loggers
        self.channel = Channel(self.progress, Observers(run), Loggers(made, self.progress))
        self.loop = Loop(run, self.channel, self.after, self.pause)
        self.log: Log | None = None
        self.log_length, self.unused = 0, False
        self.signals = Signals(lambda: self.progress.tell(Remark("stopping after this update ...")))
        self.random = checkpoint.random_state()

    @staticmethod
    def start(
        config: Config,
        *,
        progress: Listener | None = None,
        loggers: Mapping[str, Logger] | None = None,
        source: Path | None = None,
    ) -> Session:
        """A new run, its folder made and its first state saved.

        Args:
            progress: what shows it to people; warnings alone by default.
            loggers: by name, instead of the recipe's; they are told of everything that happens.
            source: the folder of a run whose parts and heads to start from.

        Raises:
            UsageError: if the folder exists and something was trained in it, or the configuration is wrong.
            MtpeftError: if another process writes there.
        """
        folder = Path(config.output.dir)
        with _locked(folder) as lock:
            if not is_untrained(folder):
                refuse_existing(folder)
            config = split_classes(config)
            inheritance = Inheritance.of(source, config) if source else Inheritance()
            run = setup(inheritance.merge(config), inherited=inheritance.tasks, first_stage=inheritance.stages)
            inheritance.give(run)
            check_training(run)
            session = Session(run, lock, progress, loggers)

            def fill(folder: Path) -> None:
                write_file(folder / "config.toml", run.config.to_toml().encode())
                Manifest.of(run, inheritance.origin).write(folder)
                checkpoint.save_state(folder / "state", 0, session.write_state)

            write_folder(run.folder, fill)
            session.unused = True
        return session

    @staticmethod
    def resume(
        config: Config,
        *,
        progress: Listener | None = None,
        loggers: Mapping[str, Logger] | None = None,
        source: Path | None = None,
    ) -> Session:
        """A run as its last saved state left it.

        Args:
            source: the run that it was started from; it need not be named again.

        Raises:
            MtpeftError: if there is no such run, its state is damaged, or another process writes there.
            DataError: if its data is not what it was.
            UsageError: if ``config`` changes what is trained.
        """
        folder = Path(config.output.dir)
        with _locked(folder) as lock:
            state = checkpoint.current_state(within(folder, "state"))
            inheritance, config = Inheritance.again(folder, split_classes(config), source)
            refuse_changes(config, folder)
            run = setup(config, inherited=inheritance.tasks, first_stage=inheritance.stages)
            kept = Manifest.read(folder)
            refuse_other_data(kept, run)
            run.remarks += kept.versions_changed(Manifest.of(run, inheritance.origin))
            session = Session(run, lock, progress, loggers)
            session.read_state(state)
        return session

    @staticmethod
    def open(
        config: Config,
        *,
        progress: Listener | None = None,
        loggers: Mapping[str, Logger] | None = None,
        source: Path | None = None,
    ) -> Session:
        """`resume` where something was trained, else `start`: the same line is right when a job is started again."""
        folder = Path(config.output.dir)
        with _locked(folder) as lock:
            anew = not checkpoint.has_state(folder / "state") or (
                is_untrained(folder) and bool(first_change(split_classes(config), folder))
            )
            make = Session.start if anew else Session.resume
            session = make(config, progress=progress, loggers=loggers, source=source)
            lock.release()
        return session

    def train(self) -> ResultMatrix:
        """Train to the end; what the run leaves is then in its folder.

        Raises:
            Stopped: after Ctrl-C or SIGTERM, with the state saved.
            KeyboardInterrupt: after a second one, or where an update takes too long; the state before stays.
        """
        try:
            self._train()
        except Exception:
            if self.unused:
                shutil.rmtree(self.run.folder, ignore_errors=True)
            raise
        finally:
            self.lock.release()
        return self.run.matrix

    def _train(self) -> None:
        try:
            self.log = Log(self.run.folder / "events.jsonl", length=self.loop.at.log_bytes)
            self.channel.listeners.append(self.log)
            self.channel.tell(RunBegan(str(self.run.folder), tuple(self.run.tasks), self.loop.at.updates))
            for remark in (*self.run.remarks, *self.run.caveats):
                self.channel.tell(Remark(f"note: {remark}"))
            checkpoint.restore_random(self.random)
            with self.signals:
                self.loop.train()
            self.finish()
        finally:
            self.channel.close()

    def finish(self) -> None:
        """Write the adapter and the results."""
        run, at = self.run, self.loop.at
        run.matrix.costs = costs(run, at)
        run.host.save(run.folder / "adapter", run.about())
        write_json(run.folder / "results.json", sealed(run.matrix.to_json()))
        spent = Measured(at.seconds, run.matrix.costs.images_per_second, run.matrix.costs.peak_memory_bytes)
        self.channel.tell(RunEnded(str(run.folder), at.updates, spent))

    def after(self, event: Event) -> None:
        """Save where it is due; stop where that was asked and no gradient is under way."""
        every, at = self.run.config.output.save_every, self.loop.at
        self.log_length = self.log.length if self.log else 0
        self.unused = self.unused and isinstance(event, Begin | Batch)
        due = isinstance(event, Update) and not at.stopped and every and at.updates % every == 0
        if due or (isinstance(event, Evaluate) and event.final):
            self.save()
            self.signals.check()
        elif not isinstance(event, Batch):
            self.pause()

    def pause(self) -> None:
        """Where a stop was asked, save and raise `Stopped`; an evaluation under way is made again."""
        if self.signals.wanted:
            self.save()
            self.signals.check()

    def save(self) -> None:
        """Save the state as it was after the last event."""
        self.signals.patient()
        if self.log:
            self.log.sync()
        self.loop.at.log_bytes, self.unused = self.log_length, False
        checkpoint.save_state(self.run.folder / "state", self.loop.at.events, self.write_state)
        self.channel.tell(Saved(self.loop.at.updates))

    def write_state(self, folder: Path) -> None:
        run, loop = self.run, self.loop
        run.host.save(folder / "adapter", run.about())
        saved = checkpoint.Saved(loop.at, loop.validation.best, run.matrix.to_json())
        optimizer = checkpoint.optimizer_tensors(loop.stage.optimizer, loop.stage.parameters) if loop.at.open else {}
        tensors = {
            "optimizer": optimizer,
            "balancer": run.balancer.state() if loop.at.stage >= 0 else {},
            "random": checkpoint.random_state(),
        }
        checkpoint.write_state(folder, saved, tensors)

    def read_state(self, folder: Path) -> None:
        run, loop = self.run, self.loop
        saved, tensors = checkpoint.read_state(folder, _TENSORS)
        run.restore(folder / "adapter")
        run.matrix = ResultMatrix.from_json(saved.matrix, str(folder / "position.json"))
        saved.at.check(run.tasks, run.stages())
        loop.validation.best = saved.validation
        loop.resume(saved.at)
        self.log_length = saved.at.log_bytes
        if loop.at.stage >= 0:
            run.balancer.restore(tensors["balancer"])
        if loop.at.open:
            checkpoint.restore_optimizer(loop.stage.optimizer, loop.stage.parameters, tensors["optimizer"])
        self.random = tensors["random"]


@contextmanager
def _locked(folder: Path) -> Iterator[Lock]:
    """The lock of a folder, which is released where no session comes of it."""
    lock = Lock(folder)
    try:
        yield lock
    except BaseException:
        lock.release()
        raise
