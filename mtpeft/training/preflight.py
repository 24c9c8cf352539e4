"""One tiny update of every stage before the first real one: a setting that only a later stage uses is found here."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from mtpeft.errors import MtpeftError
from mtpeft.plugins import in_words
from mtpeft.schedule import Batch, Begin, Update
from mtpeft.training.loop import Loop
from mtpeft.training.run import Run
from mtpeft.training.stage import Stage

_SAMPLES = 2
"""Of each task: normalisation over a batch takes no single one."""


def check_training(run: Run) -> None:
    """Build every task's parts and head, and make an update of each stage on two samples of each task.

    It is made on a copy that shares the frozen backbone; the run, and the random numbers it draws, stay as they are.
    What routines do is left out: they may pass over all data.

    Raises:
        MtpeftError: naming the task, or the stage, that cannot be trained.
    """
    devices = range(torch.cuda.device_count()) if run.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        twin = _copied(run)
        loop = Loop(twin)
        for stage, names in enumerate(run.schedule.stage_tasks(list(run.trained)), run.first_stage):
            _check_stage(loop, Begin(stage, tuple(names), 1))


def _check_stage(loop: Loop, begin: Begin) -> None:
    run, names = loop.run, begin.tasks
    loop.at.enter(begin)
    for name in names:
        with _named(f'task "{name}"'):
            run.meet(name)
    for name in names if len(names) > 1 else ():
        with _named(f'task "{name}"'):
            stage = _open(loop, (name,))
            stage.task_losses(stage.next_batch(Batch(_quota(run, (name,)))))
    with _named(f'task "{names[0]}"' if len(names) == 1 else f"stage {begin.stage + 1}"):
        stage = _open(loop, names)
        loop.do(Batch(_quota(run, names)))
        loop.do(Update(0))
        stage.apart.close()


def _open(loop: Loop, names: tuple[str, ...]) -> Stage:
    """A stage without routines whose one batch holds these tasks."""
    loop.stage = Stage(loop.run, loop.at)
    loop.stage.routines.all = []
    loop.stage.open([_quota(loop.run, names)])
    loop.run.host.train()
    return loop.stage


def _quota(run: Run, names: tuple[str, ...]) -> dict[str, int]:
    return {n: min(_SAMPLES, run.tasks[n].batch_size, len(run.dataset(n, "train"))) for n in names}


def _copied(run: Run) -> Run:
    """The same run with a host, tasks and balancer of its own; only what is frozen is shared."""
    host = run.host
    own = {id(tensor) for owner in host.owners() for tensor in host.tensors(owner).values()}
    own |= {id(tensor) for tensor in host.heads.parameters()}
    shared = {id(p): p for p in run.backbone.module.parameters() if id(p) not in own}
    config = replace(run.config, workers=0)
    twin = copy.deepcopy(host, dict(shared))
    tasks, balancer = copy.deepcopy(run.tasks), copy.deepcopy(run.balancer)
    return replace(run, config=config, host=twin, tasks=tasks, balancer=balancer)


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Say what an error is about."""
    try:
        yield
    except MtpeftError:
        raise
    except Exception as error:
        message = f"{what} cannot be trained with these settings: {in_words(error)}"
        raise MtpeftError(message, hint="`mtpeft --debug ...` shows where it happened") from error
