"""What a run would train and cost, found by making a few updates of it in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from mtpeft.config import Config
from mtpeft.data.split_classes import split_classes
from mtpeft.schedule import Batch, Begin, End, Event, Update
from mtpeft.training.continue_from import Inheritance
from mtpeft.training.costs import costs
from mtpeft.training.loggers import make_loggers
from mtpeft.training.loop import Loop
from mtpeft.training.preflight import check_training
from mtpeft.training.run import Run
from mtpeft.training.setup import setup

_UPDATES = 4


def rehearse(config: Config, source: Path | None = None) -> dict[str, Any]:
    """Set a run up, make a few updates of its first stage, and say what the whole would cost; nothing is written.

    Args:
        source: the run to start from.

    Raises:
        MtpeftError: what the run itself would raise.
    """
    config = split_classes(config)
    inheritance = Inheritance.of(source, config) if source else Inheritance()
    run = setup(inheritance.merge(config), inherited=inheritance.tasks, first_stage=inheritance.stages)
    inheritance.give(run)
    check_training(run)
    make_loggers(config.loggers)  # what is wrong with one is said here too
    stages = [event for event in run.events() if isinstance(event, Begin)]
    loop = Loop(run)
    seconds = _time_updates(loop)
    for name in run.trained:
        run.meet(name)
    count = costs(run, loop.at)
    return {
        "backbone": run.backbone.name,
        "sites": {name: _sites(run, name) for name in run.host.methods},
        "parameters": {**count.to_dict()["parameters"]},
        "learning_rates": run.learning_rates() | {"warmup": config.optimizer.warmup},
        "adapter_bytes": 4 * count.parameters.total + run.host.count().buffers,
        "stages": [{"stage": event.stage, "tasks": list(event.tasks), "updates": event.steps} for event in stages],
        "update_seconds": seconds,
        "images_per_second": loop.at.images / loop.at.updates / seconds,
        "seconds": seconds * sum(event.steps for event in stages),
        "peak_memory_bytes": count.peak_memory_bytes,
    }


def _time_updates(loop: Loop) -> float:
    """Seconds of one update: the median, without the first."""
    times, started = [], perf_counter()
    for event in _first_updates(loop.run):
        loop.do(event)
        if isinstance(event, Begin | Update):
            times.append(perf_counter() - started)
            started = perf_counter()
    return median(times[2:] or times[1:])


def _first_updates(run: Run) -> Iterator[Event]:
    done = 0
    for event in run.events():
        if isinstance(event, End) or done == _UPDATES:
            return
        done += isinstance(event, Update)
        if isinstance(event, Begin | Batch | Update):
            yield event


def _sites(run: Run, method: str) -> list[str]:
    """Where a method's parts sit."""
    return list(dict.fromkeys(site for _, parts in run.host.parts.by_owner[method].items() for site in parts))
