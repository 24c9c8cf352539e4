"""Stages of continual learning, small enough to work out by hand; and runs of two stages in which classes are added."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from signal import SIGINT
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mtpeft.api import Context, Host
from mtpeft.plugins import resolve
from mtpeft.testing import zoo
from mtpeft.testing.case import Readout
from mtpeft.training.run import Run
from mtpeft.training.session import Session
from support.training_toy import config

ADDED_CLASSES = (
    "tasks.a.group=g", "tasks.b.group=g", "tasks.a.names=['red','green']", "tasks.b.names=['blue','white']",
    "schedule.steps=3", "tasks.a.count=12", "tasks.b.count=12",
)  # fmt: skip


def make(name: str, tasks: Sequence[str] = ("a", "b"), beside: str | None = "lora", **settings: Any) -> Host:
    """A tiny ViT under a method and, for those without parts, another one; each task has a head of its own."""
    torch.manual_seed(0)
    methods = [] if beside is None else [(beside, resolve("methods", beside)(rank=2))]
    host = Host(zoo()["vit"](), [*methods, (name, resolve("methods", name)(**settings))], list(tasks))
    for task in tasks:
        host.add_head(task, Readout(host.info))
        host.bind_head(task, task)
    return host.eval()


def images(task: str, count: int = 6) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(ord(task[0])))


def targets(count: int = 6) -> list[dict[str, Any]]:
    return [{"label": torch.tensor(i % 3)} for i in range(count)]


def stage(host: Host, tasks: Sequence[str], seen: Sequence[str], **more: Any) -> Context:
    """A stage of ``tasks``: six samples each."""

    def loss(task: str, batch: Tensor, wanted: list[dict[str, Any]]) -> Tensor:
        return F.cross_entropy(host.predict(batch, task), torch.stack([t["label"] for t in wanted]))

    def batches(*, train: bool = True, tasks: Sequence[str] | None = None) -> Any:
        return [(t, images(t), targets()) for t in (more_tasks if tasks is None else tasks)]

    def load(keys: Any, visit: int) -> Any:
        for task in dict.fromkeys(task for task, _ in keys):
            rows = [index for name, index in keys if name == task]
            yield task, images(task)[rows], [targets()[row] for row in rows]

    more_tasks = tuple(tasks)
    host.focus(tasks)
    return Context(host, more_tasks, tuple(seen), batches=batches, load=load, loss=loss, **more)


def train(folder: Path, method: str, *settings: str, stop: int | None = None) -> Run:
    """Two stages of two classes each; ``stop`` interrupts after so many updates and goes on in another session."""
    plan = config(folder, *ADDED_CLASSES, *settings, schedule="sequential", method=method)
    session = Session.start(plan)
    if stop is not None:
        after = session.loop.after

        def pressed(event: Any) -> None:
            session.signals.wanted = session.signals.wanted or SIGINT * (session.loop.at.updates == stop)
            after(event)

        session.loop.after = pressed
        with pytest.raises(KeyboardInterrupt):
            session.train()
        session = Session.resume(plan)
    session.train()
    return session.run


def same(one: Run, other: Run, *, kept: bool = False) -> bool:
    """Whether two runs end with the same bits in parts and heads, and in what routines keep if asked."""
    pairs = [(a.tensors(owner) for a in (one.host, other.host)) for owner in one.host.owners()]
    pairs += [(a.heads[name].state_dict() for a in (one.host, other.host)) for name in one.host.heads]
    if kept:
        pairs += [(a.routines[name].kept() for a in (one.host, other.host)) for name in one.host.routines]
    found = [(dict(a), dict(b)) for a, b in pairs]
    return all(a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a) for a, b in found)
