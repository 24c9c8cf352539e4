"""One training from its folder's first file to its last, through every way of being interrupted."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mtpeft.config import Config
from mtpeft.data.split_classes import split_classes
from mtpeft.evaluation import ResultMatrix
from mtpeft.files import read_json, write_file, write_folder, write_json
from mtpeft.plugins import notify
from mtpeft.schedule import Batch, Evaluate, Event, Update
from mtpeft.training import checkpoint
from mtpeft.training.continue_from import Inheritance
from mtpeft.training.log import Log
from mtpeft.training.loop import Loop
from mtpeft.training.progress import Progress, Quiet
from mtpeft.training.run import Run, setup
from mtpeft.training.run_files import costs, manifest, refuse_changes, refuse_existing
from mtpeft.training.stage import Position, Stage

_TENSORS = ("optimizer", "balancer", "methods", "random")


class Session:
    """A `Loop` with a folder: saves, resumes, stops on Ctrl-C, and writes what is left in the end.

    Use `start` or `resume`, then `train`.
    """

    def __init__(self, run: Run, progress: Progress) -> None:
        self.run, self.progress = run, progress
        self.loop = Loop(run, progress, self.log_entry, self.after, self.pause)
        self.log: Log | None = None
        self.wanted = False
        self.random = checkpoint.random_state()

    @staticmethod
    def start(config: Config, *, progress: Progress | None = None, source: Path | None = None) -> Session:
        """A new run, its folder made and its first state saved.

        Args:
            source: the folder of a run whose parts and heads to start from.

        Raises:
            UsageError: if the folder exists, or the configuration is wrong.
        """
        refuse_existing(Path(config.output.dir))
        config = split_classes(config)
        inheritance = Inheritance.of(source, config) if source else Inheritance()
        run = setup(inheritance.merge(config), inherited=inheritance.tasks, first_stage=inheritance.stages)
        inheritance.give(run)
        session = Session(run, progress or Quiet())

        def fill(folder: Path) -> None:
            write_file(folder / "config.toml", run.config.to_toml().encode())
            write_json(folder / "manifest.json", manifest(run, inheritance.to_json()))
            checkpoint.save_state(folder / "state", 0, session.write_state)

        write_folder(run.folder, fill)
        return session

    @staticmethod
    def resume(config: Config, *, progress: Progress | None = None) -> Session:
        """A run as its last saved state left it.

        Raises:
            MtpeftError: if there is no such run or its state is damaged.
            UsageError: if ``config`` changes what is trained.
        """
        folder = Path(config.output.dir)
        state = checkpoint.current_state(folder / "state")
        config = split_classes(config)
        refuse_changes(config, folder)
        inheritance = Inheritance.from_json(read_json(folder / "manifest.json")["from"])
        run = setup(config, inherited=inheritance.tasks, first_stage=inheritance.stages)
        session = Session(run, progress or Quiet())
        session.read_state(state)
        inheritance.freeze(run)
        return session

    def train(self) -> ResultMatrix:
        """Train to the end; what the run leaves is then in its folder.

        Raises:
            KeyboardInterrupt: after Ctrl-C, with the state saved.
        """
        self.log = Log(self.run.folder / "events.jsonl", length=self.loop.at.log_bytes)
        checkpoint.restore_random(self.random)
        for remark in (*self.run.remarks, *self.run.caveats):
            self.progress.say(f"note: {remark}")
        notify("run_started", run=self.run)
        try:
            with self.listening():
                self.loop.train()
        except KeyboardInterrupt:
            self.save()
            raise
        finally:
            self.progress.close()
            self.log.close()
        self.finish()
        return self.run.matrix

    def finish(self) -> None:
        run = self.run
        run.matrix.costs = costs(run, self.loop.at)
        write_folder(run.folder / "adapter", lambda folder: run.host.save(folder, run.about()))
        write_json(run.folder / "results.json", run.matrix.to_json())
        notify("run_ended", run=run)

    def log_entry(self, entry: dict[str, Any]) -> None:
        """Write to the log; observers are told of each update."""
        if self.log:
            self.log.write(entry)
        if entry["event"] == "update":
            notify("step_ended", run=self.run, stage=entry["stage"], step=entry["step"], losses=entry["losses"])

    def after(self, event: Event) -> None:
        """Save where it is due; stop where Ctrl-C was pressed and no gradient is under way."""
        every, at = self.run.config.output.save_every, self.loop.at
        due = isinstance(event, Update) and not at.stopped and every and at.updates % every == 0
        if due:
            self.save()
        if isinstance(event, Evaluate) and event.final:
            self.save()
            notify("stage_ended", run=self.run, stage=event.stage, tasks=at.tasks)
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
            self.progress.say("stopping after this update ...")

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

    def write_state(self, folder: Path) -> None:
        run, loop = self.run, self.loop
        run.host.save(folder / "adapter", run.about())
        position = {"at": asdict(loop.at), "validation": loop.validation.state(), "matrix": run.matrix.to_json()}
        optimizer = checkpoint.optimizer_tensors(loop.stage.optimizer, loop.stage.parameters) if loop.at.open else {}
        tensors = {
            "optimizer": optimizer,
            "balancer": run.balancer.state() if loop.at.stage >= 0 else {},
            "methods": checkpoint.prefixed({name: method.state() for name, method in run.host.methods.items()}),
            "random": checkpoint.random_state(),
        }
        checkpoint.write_state(folder, position, tensors)

    def read_state(self, folder: Path) -> None:
        run, loop = self.run, self.loop
        position, tensors = checkpoint.read_state(folder, _TENSORS)
        run.restore(folder / "adapter")
        run.matrix = ResultMatrix.from_json(position["matrix"], str(folder / "position.json"))
        loop.at = Position.from_json(position["at"])
        loop.validation.restore(position["validation"])
        methods = checkpoint.grouped(tensors["methods"])
        for name, method in run.host.methods.items():
            method.restore(methods.get(name, {}))
        if loop.at.stage >= 0:
            loop.stage = Stage(run, loop.at)
            run.balancer.restore(tensors["balancer"])
        if loop.at.open:
            loop.open_stage()
            checkpoint.restore_optimizer(loop.stage.optimizer, loop.stage.parameters, tensors["optimizer"])
        self.random = tensors["random"]
