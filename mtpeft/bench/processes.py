"""Trials in processes of their own: the memory of each is its own, and what breaks it breaks nothing else."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from mtpeft.bench.trials import Record
from mtpeft.config import Config
from mtpeft.errors import Diverged, MtpeftError, NotApplicable
from mtpeft.evaluation import summarize
from mtpeft.plugins import in_words
from mtpeft.training.evaluate import evaluate
from mtpeft.training.gallery import gallery, write_galleries
from mtpeft.training.run import Run
from mtpeft.training.run_files import peak_memory
from mtpeft.training.session import Session
from mtpeft.training.setup import choose_device, open_run

OVER_STAGES: tuple[str, ...] = ("average_incremental", "forgetting")
"""What a sequence is summed up by, as `summarize` names it."""


class Processes:
    """Starts them, and stops them all.

    Args:
        threads: of torch, in each process.
    """

    def __init__(self, threads: int) -> None:
        forks = "forkserver" in multiprocessing.get_all_start_methods()
        self.context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
        if forks:
            self.context.set_forkserver_preload([__name__, "timm"])
        self.threads, self.live, self.stopped = threads, set[BaseProcess](), False

    def run(self, config: Config, trained: Path | None, pictures: Path | None = None) -> Record:
        """`run` in a new process.

        Raises:
            KeyboardInterrupt: after `stop`.
            MtpeftError: for what is no fault of the method: data or weights that are not there, a full disk.
        """
        if self.stopped:
            raise KeyboardInterrupt
        ours, theirs = self.context.Pipe(duplex=False)
        process = self.context.Process(target=_report, args=(theirs, self.threads, config, trained, pictures))
        process.start()
        self.live.add(process)
        theirs.close()
        try:
            record = ours.recv()
        except EOFError:
            record = None
        process.join()
        self.live.discard(process)
        if self.stopped:
            raise KeyboardInterrupt
        if isinstance(record, MtpeftError):
            raise record
        return record or Record(error=f"the process ended with code {process.exitcode}")

    def stop(self) -> None:
        """End every process; what they were at is lost."""
        self.stopped = True
        for process in list(self.live):
            process.kill()  # a training that is asked to stop would save first


def _report(connection: Connection, threads: int, *arguments: Any) -> None:
    os.setpgrp()  # a Ctrl-C is for who started us, and stops us in turn
    torch.set_num_threads(threads)
    try:
        connection.send(run(*arguments))
    except (NotApplicable, Diverged) as error:
        connection.send(Record(error=error.message))
    except MtpeftError as error:
        connection.send(error)
    except Exception as error:  # a method's own mistake is a row that says so, not the end of the comparison
        connection.send(Record(error=in_words(error)))


def run(config: Config, trained: Path | None = None, pictures: Path | None = None) -> Record:
    """Train and score on ``config.evaluate_on``; or score a run of the same settings that was trained for a choice.

    Args:
        pictures: a folder for what it says of some samples of that split.

    Raises:
        MtpeftError: what stands in the way of training.
    """
    if trained is not None:
        opened = open_run(trained, evaluate_on=config.evaluate_on)
        _draw(opened, pictures)
        return Record({name: evaluate(opened, name, config.evaluate_on).value for name in opened.host.tasks})
    shutil.rmtree(config.output.dir, ignore_errors=True)
    device = choose_device(config.device)
    before = peak_memory(device)
    session = Session.start(config)
    matrix = session.train()
    last = max(stage for stage, _ in matrix.cells)
    scores = {task: cell.value for (stage, task), cell in matrix.cells.items() if stage == last}
    costs = matrix.to_json()["costs"]
    summary = summarize(matrix) if len(matrix.stages) > 1 else {}
    over_stages = {name: summary[name] for name in OVER_STAGES if name in summary}
    _draw(session.run, pictures)
    seconds = costs["cpu_seconds" if device.type == "cpu" else "seconds"]
    return Record(scores, costs, seconds, costs["peak_memory_bytes"] - before, over_stages)


def _draw(run: Run, pictures: Path | None) -> None:
    if pictures is not None:
        write_galleries(pictures, {name: gallery(run, name, run.config.evaluate_on) for name in run.host.tasks})
