"""One training from its folder's first file to its last, through every way of being interrupted."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mtpeft.config import Config
from mtpeft.data.split_classes import split_classes
from mtpeft.evaluation import ResultMatrix
from mtpeft.files import read_json, within, write_file, write_folder, write_json
from mtpeft.schedule import Batch, Evaluate, Event, Update
from mtpeft.training import checkpoint
from mtpeft.training.continue_from import Inheritance
from mtpeft.training.happenings import Channel, Listener, Measured, Remark, RunBegan, RunEnded, Saved
from mtpeft.training.listeners import Logger, Loggers, Observers
from mtpeft.training.log import Log
from mtpeft.training.loop import Loop
from mtpeft.training.position import Position
from mtpeft.training.progress import Quiet
from mtpeft.training.run import Run
from mtpeft.training.run_files import costs, manifest, refuse_changes, refuse_existing
from mtpeft.training.setup import setup

_TENSORS = ("optimizer", "balancer", "random")


class Session:
    """A `Loop` with a folder: saves, resumes, stops on Ctrl-C, and writes what is left in the end.

    Use `start` or `resume`, then `train`.
    """

    def __init__(self, run: Run, progress: Listener, loggers: Mapping[str, Logger]) -> None:
        self.run, self.progress = run, progress
        self.channel = Channel(progress, Observers(run), Loggers(loggers, progress))
        self.loop = Loop(run, self.channel, self.after, self.pause)
        self.log: Log | None = None
        self.wanted = False
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
            loggers: by name; they are told of everything that happens.
            source: the folder of a run whose parts and heads to start from.

        Raises:
            UsageError: if the folder exists, or the configuration is wrong.
        """
        refuse_existing(Path(config.output.dir))
        config = split_classes(config)
        inheritance = Inheritance.of(source, config) if source else Inheritance()
        run = setup(inheritance.merge(config), inherited=inheritance.tasks, first_stage=inheritance.stages)
        inheritance.give(run)
        session = Session(run, progress or Quiet(), loggers or {})

        def fill(folder: Path) -> None:
            write_file(folder / "config.toml", run.config.to_toml().encode())
            write_json(folder / "manifest.json", manifest(run, inheritance.to_json()))
            checkpoint.save_state(folder / "state", 0, session.write_state)

        write_folder(run.folder, fill)
        return session

    @staticmethod
    def resume(
        config: Config, *, progress: Listener | None = None, loggers: Mapping[str, Logger] | None = None
    ) -> Session:
        """A run as its last saved state left it.

        Raises:
            MtpeftError: if there is no such run or its state is damaged.
            UsageError: if ``config`` changes what is trained.
        """
        folder = Path(config.output.dir)
        state = checkpoint.current_state(within(folder, "state"))
        config = split_classes(config)
        refuse_changes(config, folder)
        inheritance = Inheritance.from_json(read_json(within(folder, "manifest.json"))["from"])
        run = setup(config, inherited=inheritance.tasks, first_stage=inheritance.stages)
        session = Session(run, progress or Quiet(), loggers or {})
        session.read_state(state)
        return session

    def train(self) -> ResultMatrix:
        """Train to the end; what the run leaves is then in its folder.

        Raises:
            KeyboardInterrupt: after Ctrl-C, with the state saved.
        """
        self.log = Log(self.run.folder / "events.jsonl", length=self.loop.at.log_bytes)
        self.channel.listeners.append(self.log)
        try:
            self.channel.tell(RunBegan(str(self.run.folder), tuple(self.run.tasks), self.loop.at.updates))
            for remark in (*self.run.remarks, *self.run.caveats):
                self.channel.tell(Remark(f"note: {remark}"))
            checkpoint.restore_random(self.random)
            self.go_on()
            self.finish()
        finally:
            self.channel.close()
        return self.run.matrix

    def go_on(self) -> None:
        """Train from where the position stands to the end; Ctrl-C saves."""
        try:
            with self.listening():
                self.loop.train()
        except KeyboardInterrupt:
            self.save()
            raise

    def finish(self) -> None:
        """Write the adapter and the results."""
        run, at = self.run, self.loop.at
        run.matrix.costs = costs(run, at)
        run.host.save(run.folder / "adapter", run.about())
        write_json(run.folder / "results.json", run.matrix.to_json())
        spent = Measured(at.seconds, run.matrix.costs.images_per_second, run.matrix.costs.peak_memory_bytes)
        self.channel.tell(RunEnded(str(run.folder), at.updates, spent))

    def after(self, event: Event) -> None:
        """Save where it is due; stop where Ctrl-C was pressed and no gradient is under way."""
        every, at = self.run.config.output.save_every, self.loop.at
        due = isinstance(event, Update) and not at.stopped and every and at.updates % every == 0
        if due:
            self.save()
        if isinstance(event, Evaluate) and event.final:
            self.save()
        if not isinstance(event, Batch):
            self.pause()

    def pause(self) -> None:
        if self.wanted:
            raise KeyboardInterrupt

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, the first Ctrl-C is a wish; the second stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGINT)

        def heard(number: int, frame: Any) -> None:
            self.wanted = True
            signal.signal(signal.SIGINT, before)
            # Not on the channel: a signal comes at any moment, perhaps in the middle of a logger.
            self.progress.tell(Remark("stopping after this update ..."))

        signal.signal(signal.SIGINT, heard)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def save(self) -> None:
        """Save the state as it is between two updates."""
        if self.log:
            self.loop.at.log_bytes = self.log.sync()
        checkpoint.save_state(self.run.folder / "state", self.loop.at.events, self.write_state)
        self.channel.tell(Saved(self.loop.at.updates))

    def write_state(self, folder: Path) -> None:
        run, loop = self.run, self.loop
        run.host.save(folder / "adapter", run.about())
        position = {"at": asdict(loop.at), "validation": loop.validation.state(), "matrix": run.matrix.to_json()}
        optimizer = checkpoint.optimizer_tensors(loop.stage.optimizer, loop.stage.parameters) if loop.at.open else {}
        tensors = {
            "optimizer": optimizer,
            "balancer": run.balancer.state() if loop.at.stage >= 0 else {},
            "random": checkpoint.random_state(),
        }
        checkpoint.write_state(folder, position, tensors)

    def read_state(self, folder: Path) -> None:
        run, loop = self.run, self.loop
        position, tensors = checkpoint.read_state(folder, _TENSORS)
        run.restore(folder / "adapter")
        run.matrix = ResultMatrix.from_json(position["matrix"], str(folder / "position.json"))
        loop.validation.restore(position["validation"])
        loop.resume(Position.from_json(position["at"]))
        if loop.at.stage >= 0:
            run.balancer.restore(tensors["balancer"])
        if loop.at.open:
            checkpoint.restore_optimizer(loop.stage.optimizer, loop.stage.parameters, tensors["optimizer"])
        self.random = tensors["random"]
