"""Trains a toy run that is killed with SIGKILL again and again, and resumed each time.

Usage: ``killed.py FOLDER SEED``. Every life ends at a random event, in the middle of a save, or before the pointer to
the new state is written; the last one trains to the end.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from random import Random

import torch

from mtpeft import files
from mtpeft.errors import MtpeftError
from mtpeft.training import checkpoint
from mtpeft.training.session import Session
from support import training_toy

SETTINGS = ("output.save_every=3", "schedule.steps=8", "schedule.eval_every=4", "balance.name=uw", "output.keep=best")
CHOICES = {"schedule": "sequential", "method": "toy@shared"}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def live(folder: Path, random: Random, *, last: bool) -> None:
    """One life of the run."""
    config = training_toy.config(folder, *SETTINGS, **CHOICES)
    session = Session.resume(config) if folder.exists() else Session.start(config)
    if not last:
        plan_death(session, random)
    session.train()


def plan_death(session: Session, random: Random) -> None:
    how, when = random.choice(["event", "save", "pointer"]), random.randrange(1, 14)
    if how == "event":
        do, count = session.loop.do, iter(range(when, -1, -1))
        session.loop.do = lambda event: die() if next(count) == 0 else do(event)
    else:
        name = "write_state" if how == "save" else "write_json"
        write = getattr(checkpoint, name)
        count = iter(range(random.randrange(2), -1, -1))

        def dying(*given: object) -> None:
            if next(count) == 0:
                if how == "save":
                    write(*given)
                die()
            write(*given)

        setattr(checkpoint, name, dying)


def main(folder: Path, seed: int) -> None:
    torch.set_num_threads(1)
    files.sync = lambda path: None  # what a process wrote survives its death without
    training_toy.register()
    random, deaths = Random(seed), 0
    while True:
        last = deaths >= 8
        draws = random.randrange(1 << 30)
        child = os.fork()
        if child == 0:
            try:
                live(folder, Random(draws), last=last)
            except MtpeftError as error:
                print(error, file=sys.stderr)
                os._exit(3)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if os.WIFEXITED(status) and (last or os.WEXITSTATUS(status) != 0):
            print(deaths)
            sys.exit(os.WEXITSTATUS(status))
        deaths += os.WIFSIGNALED(status)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
