"""The product of options: in every combination, a step's gradient just before clipping is the sum written by hand.

Schedule x accumulation x balancer (of losses and of gradients) x penalty x checkpointing x scope. Each mutant that
once survived the tests of single options is killed here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import exp
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import training_toy
from support.mutants import Mutant
from support.training_toy import Toy, config
from torch import Tensor
from torch.nn import functional as F

from mtpeft import plugins
from mtpeft.api import Balancer, Context, Routine, hookimpl
from mtpeft.peft import gradients as gradients_module
from mtpeft.schedule import Batch, Begin, End, Evaluate, Event, Update
from mtpeft.training.loop import Loop
from mtpeft.training.progress import Quiet
from mtpeft.training.routines import Routines
from mtpeft.training.run import Run
from mtpeft.training.setup import setup
from mtpeft.training.stage import Stage
from mtpeft_plugins.balancing.rlw import Rlw

WEIGHTS = {"a": 0.5, "b": 2.0, "c": 1.5}
SIZES = {"a": 5, "b": 4, "c": 6}


class Penalty(Routine["Penalised"]):
    """A penalty on the parts, on a pass of its own (for the first task, met or not in the batch), or on the outputs."""

    def penalty(self, context: Context) -> Tensor | None:
        seen = [(b.task, b.images, b.outputs) for b in context.batch]
        parts = [p for placed in context.parts(self.method) for p in placed.part.parameters()]
        return by_hand(self.method.kind, context.host, seen, parts)


@dataclass
class Penalised(Toy):
    kind: str = "none"

    def routine(self) -> Penalty:
        return Penalty(self)


@dataclass
class Tilted(Balancer):
    """Rows of length 1, times the loss of their task: neither the tasks nor the losses of rows may be mixed up."""

    needs_task_gradients = True

    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([self.weights[task] * loss for task, loss in losses.items()]).sum()

    def aggregate(self, jacobian: Tensor, tasks: Any, losses: Mapping[str, Tensor]) -> Tensor:
        rows = [losses[task] * row / row.norm() for task, row in zip(tasks, jacobian, strict=True)]
        return torch.stack(rows).sum(0)


class Plugin:
    @hookimpl
    def register_balancers(self) -> dict[str, str]:
        return {"tilted": f"{__name__}:Tilted"}

    @hookimpl
    def register_methods(self) -> dict[str, str]:
        return {"penalised": f"{__name__}:Penalised"}


@dataclass(frozen=True)
class Case:
    schedule: str = "joint"
    accumulate: int = 1
    balancer: str = "equal"
    penalty: str = "none"
    checkpointing: bool = False
    method: str = "penalised@shared"


SCHEDULES = ("joint", "sequential", "interleaved", "apart")
BALANCERS = ("equal", "uw", "dwa", "rlw", "tilted")
PENALTIES = ("none", "parts", "pass", "batch")
METHODS = ("penalised@shared", "penalised@task", "penalised@shared+toy@task")
CASES = st.builds(
    Case,
    schedule=st.sampled_from(SCHEDULES),
    accumulate=st.sampled_from((1, 2, 3)),
    balancer=st.sampled_from(BALANCERS),
    penalty=st.sampled_from(PENALTIES),
    checkpointing=st.booleans(),
    method=st.sampled_from(METHODS),
)


def by_hand(kind: str, host: Any, seen: list[tuple[str, Tensor, Tensor]], parts: list[Tensor]) -> Tensor | None:
    """The penalty on one batch of ``(task, images, outputs)``."""
    if kind == "parts":
        return torch.stack([p.square().sum() for p in parts]).sum()
    if kind == "pass":
        return torch.stack([host(images, host.tasks[0]).pooled.square().mean() for _, images, _ in seen]).sum()
    if kind == "batch":
        return torch.stack([outputs.square().mean() for _, _, outputs in seen]).sum()
    return None


def apart() -> Iterator[Event]:
    """One update, each of whose batches holds other tasks."""
    whole = {"a": 5, "c": 6, "b": 4}
    yield Begin(0, ("a", "b", "c"), 1)
    for quota in ({"a": 5, "c": 6}, {"b": 4}):
        yield Batch(quota, whole)
    yield Update(0)
    yield End(0, ("a", "b", "c"))
    yield Evaluate(0, ("a", "b", "c"))


def build(case: Case) -> Run:
    schedule = "joint" if case.schedule == "apart" else case.schedule
    chosen = [f"schedule.accumulate={case.accumulate}", "schedule.steps=1", f"balance.name={case.balancer}"]
    chosen += [f"methods.penalised.kind={case.penalty}", f"optimizer.checkpointing={str(case.checkpointing).lower()}"]
    for name in WEIGHTS:
        chosen += [f"tasks.{name}.loss_weight={WEIGHTS[name]}", f"tasks.{name}.batch_size={SIZES[name]}"]
    tasks = ",".join(f"{name}=colours" for name in WEIGHTS)
    run = setup(config("unused", *chosen, tasks=tasks, schedule=schedule, method=case.method))
    if case.schedule == "apart":
        run.schedule.events = lambda sizes, seed: apart()
    return run


def prepare(run: Run) -> None:
    """No tensor at zero, where gradients vanish, and balancers in the middle of their training."""
    generator = torch.Generator().manual_seed(1)
    for parameter in run.host.trainable(run.host.tasks).values():
        parameter.data.normal_(0, 0.3, generator=generator)
    balancer: Any = run.balancer
    for index, row in enumerate(getattr(balancer, "sums", {}).values()):
        row[:2] = torch.tensor([2.0, 1.0 + 0.3 * index], dtype=row.dtype)
    for index, parameter in enumerate(balancer.parameters()):
        parameter.data.fill_(0.4 * index - 0.3)
    if isinstance(balancer, Rlw):
        balancer.generator.manual_seed(7)


def last_update(run: Run) -> tuple[dict[str, Tensor | None], list[dict[str, Any]], dict[str, Tensor]]:
    """Gradients before clipping, batches and trained tensors of the last stage's update."""
    batches: list[dict[str, Any]] = []
    found: dict[str, Tensor | None] = {}
    next_batch, last = Stage.next_batch, run.stages() - 1

    class Caught(Exception):
        pass

    def clip(parameters: Mapping[str, Tensor], largest: float) -> float:
        if loop.at.stage == last:
            found.update({name: None if p.grad is None else p.grad.clone() for name, p in parameters.items()})
            raise Caught
        batches.clear()
        return 1.0

    def recorded(stage: Stage, event: Batch) -> Any:
        batch = next_batch(stage, event)
        batches.append({n: (batch.images_of(n), batch.targets[n], batch.keys[n]) for n in batch.rows})
        return batch

    loop = Loop(run, Quiet())
    with ExitStack() as stack:
        stack.enter_context(patch("mtpeft.training.loop.clip", clip))
        stack.enter_context(patch.object(Stage, "next_batch", recorded))
        stack.enter_context(pytest.raises(Caught))
        for event in run.events():
            loop.do(event)
            if isinstance(event, Begin):
                prepare(run)
    return found, batches, dict(loop.stage.parameters)


def expected(case: Case, run: Run, batches: list[dict[str, Any]], parameters: dict[str, Tensor]) -> list[Tensor]:
    """The gradient of every trained tensor, from one forward pass for each task of each batch."""
    host = run.host
    if case.checkpointing:
        host.checkpointing(False)
    counts = [{task: len(images) for task, (images, _, _) in batch.items()} for batch in batches]
    totals = {task: sum(count.get(task, 0) for count in counts) for count in counts for task in count}
    means: dict[str, Tensor] = {}
    drawn, penalty = torch.zeros(()), torch.zeros(())
    generator = torch.Generator().manual_seed(7)
    parts = [p for name, p in parameters.items() if "/penalised/" in name]
    for batch, count in zip(batches, counts, strict=True):
        outputs = {task: host.head_of(task)(host(images, task)) for task, (images, _, _) in batch.items()}
        losses = {task: cross_entropy(host.head_of(task), outputs[task], batch[task][1]) for task in batch}
        shares = {task: losses[task] * count[task] / totals[task] for task in batch}
        means = means | {task: means.get(task, torch.zeros(())) + loss for task, loss in shares.items()}
        factors = torch.randn(len(batch), generator=generator).softmax(0)
        drawn = drawn + torch.stack([f * WEIGHTS[t] * shares[t] for f, t in zip(factors, batch, strict=True)]).sum()
        given = by_hand(case.penalty, host, [(t, batch[t][0], outputs[t]) for t in batch], parts)
        if given is not None:
            penalty = penalty + given * sum(count.values()) / sum(totals.values())
    return summed(case, run, means, drawn, penalty, parameters)


def cross_entropy(head: Any, outputs: Tensor, targets: list[dict[str, Any]]) -> Tensor:
    return F.cross_entropy(outputs, torch.tensor([head.classes.index(target["class"]) for target in targets]))


def summed(
    case: Case, run: Run, means: dict[str, Tensor], drawn: Tensor, penalty: Tensor, parameters: dict[str, Tensor]
) -> list[Tensor]:
    """What each balancer makes of the mean losses of an update, and the penalty beside it."""
    tensors = list(parameters.values())
    plain = torch.stack([WEIGHTS[task] * loss for task, loss in means.items()]).sum()
    if case.balancer == "uw":
        logs = dict(zip(run.balancer.log_variances, run.balancer.parameters(), strict=True))
        plain = torch.stack([WEIGHTS[t] * loss * (-logs[t]).exp() + logs[t] / 2 for t, loss in means.items()]).sum()
    if case.balancer == "dwa" and case.schedule != "sequential":  # of one task in a stage, the factor is 1
        rises = {task: exp((1.0 + 0.3 * index) / 2 / 2) for index, task in enumerate("abc")}
        scale = 3 / sum(rises.values())
        plain = torch.stack([scale * rises[t] * WEIGHTS[t] * loss for t, loss in means.items()]).sum()
    if case.balancer == "rlw":
        plain = drawn
    step = gradients(plain, tensors)
    shared = [name.startswith("shared/") for name in parameters]
    if case.balancer == "tilted" and any(shared):
        own = [p for p, is_shared in zip(tensors, shared, strict=True) if is_shared]
        rows = {task: gradients(WEIGHTS[task] * loss, own) for task, loss in means.items()}
        norms = {task: torch.cat([g.flatten() for g in row]).norm() for task, row in rows.items()}
        tilted = iter([sum(means[t].detach() / norms[t] * rows[t][i] for t in rows) for i in range(len(own))])
        step = [next(tilted) if is_shared else g for g, is_shared in zip(step, shared, strict=True)]
    return [a + b for a, b in zip(step, gradients(penalty, tensors), strict=True)]


def gradients(total: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    if not total.requires_grad:
        return [torch.zeros_like(t) for t in tensors]
    found = torch.autograd.grad(total, tensors, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, tensors, strict=True)]


def check(case: Case) -> None:
    """
    Raises:
        AssertionError: where a gradient is not the sum written by hand.
    """
    training_toy.register()
    plugins.manager().register(Plugin(), "product")
    try:
        with (
            patch.object(F, "dropout", lambda x, *rest, **more: x),
            patch.object(torch.nn.Dropout, "forward", lambda self, x: x),
        ):
            run = build(case)
            found, batches, parameters = last_update(run)
            wanted = expected(case, run, batches, parameters)
    finally:
        plugins.reset()
    for (name, gradient), right in zip(found.items(), wanted, strict=True):
        gradient = torch.zeros_like(right) if gradient is None else gradient
        torch.testing.assert_close(gradient, right, rtol=1e-3, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


@pytest.fixture(autouse=True)
def toy_plugin() -> None:
    """In place of that of this room: every example has plugins of its own."""


@settings(max_examples=30)
@given(CASES)
def test_a_steps_gradient_is_the_sum_written_by_hand(case: Case) -> None:
    check(case)


HARD = [
    Case("joint", 2, "uw", "none"),
    Case("joint", 3, "equal", "parts"),
    Case("joint", 2, "tilted", "pass", method="penalised@shared+toy@task"),
    Case("joint", 2, "tilted", "batch", checkpointing=True),
    Case("apart", 1, "tilted", "pass", checkpointing=True),
    Case("apart", 1, "uw", "pass", method="penalised@task"),
    Case("joint", 2, "rlw", "none"),
    Case("sequential", 2, "dwa", "batch"),
    Case("sequential", 1, "tilted", "pass"),
    Case("interleaved", 2, "tilted", "parts"),
]


@pytest.mark.parametrize("case", HARD, ids=str)
def test_hard_cases(case: Case) -> None:
    check(case)


MUTANTS = {
    "accumulation with a learned balancer": Mutant(Loop, "batch", "total = part * ", "total = "),
    "penalty with accumulation": Mutant(Loop, "batch", "[whole * penalty", "[penalty"),
    "penalty with task gradients, by a pass": Mutant(
        Routines, "penalties", "with _ungathered(self.context.host.running):", "if True:"
    ),
    "penalty with task gradients, by the batch": Mutant(
        Stage, "backward", "with self.gradients.set_aside():", "if True:"
    ),
    "different tasks in one step, rows": Mutant(
        gradients_module.TaskGradients, "begin", "if task not in self._views:", "if True:"
    ),
    "different tasks in one step, scalar": Mutant(
        Loop, "batch", "portion(event, event.quota), portion", "portion(event, event.whole), portion"
    ),
    "rows of different tasks refused": Mutant(
        gradients_module.TaskGradients,
        "begin",
        "for task in route.tasks:",
        "assert not self._views\n    for task in route.tasks:",
    ),
    "loss_weight in rlw": Mutant(Rlw, "combine", "self.weights[task] * loss", "loss"),
    "losses of rows": Mutant(
        Stage, "aggregate", "losses[task] for task in tasks", "losses[tasks[0]] for task in tasks"
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_the_mutant_is_killed(name: str) -> None:
    with MUTANTS[name].alive(), pytest.raises((AssertionError, KeyError)):
        for case in HARD:
            check(case)


def test_every_option_has_a_hard_case() -> None:
    assert {case.balancer for case in HARD} == set(BALANCERS)
    assert {case.schedule for case in HARD} == set(SCHEDULES)
    assert {case.penalty for case in HARD} == set(PENALTIES)
    assert {case.checkpointing for case in HARD} == {True, False}
    assert {case.method for case in HARD} == set(METHODS)
