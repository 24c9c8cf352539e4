"""Checks that outputs and gradients do not depend on how a batch is run: mixed, checkpointed, compiled, composed.

Gradients are compared in fp64: in fp32 a ReLU's input at zero to rounding may have either slope.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mtpeft.backbone.features import Features
from mtpeft.errors import NotApplicable
from mtpeft.peft.host import Host
from mtpeft.peft.method import Method
from mtpeft.testing.case import TASKS, Case, gradients, part_parameters, weighted
from mtpeft.testing.merging_and_saving import expect_refusal, expect_sentence, refusal

Names = Sequence[str | None]


def mixed_equals_separate(case: Case) -> None:
    """A batch of several tasks gives the outputs and gradients of one pass for each task, whatever the order."""
    host = case.host(random=True).double()
    _expect_mixed(case, host, orders(case.method.declares.needs_task_id))


def composes_with_itself(case: Case) -> None:
    """Two of it on one host, one shared and one for each task: still mixed equals separate; or a refusal."""
    torch.manual_seed(0)
    methods = [("first", case.copy(scope="shared")), ("second", case.copy(scope="task"))]
    error = refusal(lambda: Host(case.backbone(), methods, TASKS), NotApplicable)
    if error is not None or type(case.method).encode is not Method.encode:
        expect_refusal(case, error, "two of it say how images become features, and neither is refused")
        return
    host = Host(case.backbone(), methods, TASKS).eval()
    case.randomize(host)
    _expect_mixed(case, host.double(), orders(case.method.declares.needs_task_id)[:1])


def keeps_task_gradients_apart(case: Case) -> None:
    """`Host.task_gradients` gives, from one backward pass, each task's own gradient of the shared parts."""
    host, names = case.host(random=True).double(), ["b", "a", "c", "a", "b"]
    images, shared = case.images(host, len(names)), host.shared_parameters()
    if not shared:
        return
    with host.task_gradients() as kept:
        weighted(host(images, names)).backward()
        rows = kept.rows()
        kept.write()
    summed = gradients(shared)
    host.zero_grad(set_to_none=True)
    for row, task in enumerate(kept.tasks):
        weighted(host(images[_where(names, task)], task)).backward()
        own = gradients(shared)
        case.close_gradients({n: rows[n][row] for n in shared}, own, f"gradients of task {task}, apart and alone,")
    case.close_gradients(summed, {n: rows[n].sum(0) for n in shared}, "the written gradients and their sum")


def several_tasks_take_one_pass(case: Case) -> None:
    """Several tasks on the same images, some of them not on all: outputs and gradients of one pass for each task.

    With recomputed blocks too, where the family has them, and another pass between forward and backward.
    """
    host, rows = case.host(random=True).double(), {"b": [1], "a": [0, 1, 2], "c": [2, 1]}
    images, parameters = case.images(host, 3), part_parameters(host)
    for recompute in (False, True):
        if recompute and refusal(host.checkpointing, NotApplicable) is not None:
            return
        each = host.each(images, rows)
        losses = [weighted(each[task]) for task in rows] + [weighted(host(images[own], t)) for t, own in rows.items()]
        if parameters:
            sum(losses[:3], torch.zeros(())).backward()
        together = gradients(parameters)
        if parameters:
            sum(losses[3:], torch.zeros(())).backward()
        for task, own in rows.items():
            case.close(each[task], host(images[own], task), f"outputs of task {task}, in one pass and alone,")
        case.close_gradients(together, gradients(parameters), "gradients of one pass and of one for each task")


def checkpoints(case: Case) -> None:
    """Recomputing blocks changes no gradient, even where other passes ran between forward and backward."""
    host = case.host(random=True).double()
    reason = refusal(host.checkpointing, NotApplicable)
    if reason is not None:
        expect_sentence(case, reason)
        return
    for routes in (("a", "b"), ("b", ["c", "a", "b", "a"])):
        host.checkpointing()
        recomputed = _crossed(case, host, routes)
        host.checkpointing(False)
        case.close_gradients(recomputed, _crossed(case, host, routes), "gradients with and without checkpoints")


def compiles(case: Case) -> None:
    """The host compiles into one graph, for one task and for a mixed batch, with the same outputs and gradients."""
    host = case.host(random=True)
    images, parameters = case.images(host), part_parameters(host)
    torch._dynamo.reset()
    compiled = torch.compile(host, fullgraph=True, backend="aot_eager")
    for route in ("a", ["a", "b", "b", "a"]):
        plain = _outputs_and_gradients(host, images, route, parameters)
        found = _outputs_and_gradients(compiled, images, route, parameters)
        case.close(found[0], plain[0], f"compiled and plain outputs for {route}")
        case.close_gradients(found[1], plain[1], f"compiled and plain gradients for {route}")


def orders(known: bool) -> list[Names]:
    """Mixed batches of seven; a sample whose task is not known among them, where the method allows that."""
    free = "c" if known else None
    return [
        ["b", "a", free, "c", "a", "b", "c"],
        ["a", "a", "b", "b", free, "c", "c"],
        ["c", free, "b", "a", "c", "b", "a"],
    ]


def _expect_mixed(case: Case, host: Host, batches: Sequence[Names]) -> None:
    parameters = part_parameters(host)
    for names in batches:
        images = case.images(host, len(names))
        mixed, mixed_gradients = _outputs_and_gradients(host, images, names, parameters)
        rows = [_where(names, task) for task in dict.fromkeys(names)]
        pieces = [host(images[r], task) for r, task in zip(rows, dict.fromkeys(names), strict=True)]
        loss = sum((weighted(piece) for piece in pieces), torch.zeros(()))
        if parameters:
            loss.backward()
        separate = Features.cat(pieces)[torch.cat(rows).argsort()]
        case.close(mixed, separate, f"outputs of the mixed batch {names} and of separate ones")
        case.close_gradients(mixed_gradients, gradients(parameters), f"gradients of {names}, mixed and separate,")


def _outputs_and_gradients(
    host: Callable[..., Features], images: Tensor, route: str | Names, parameters: dict[str, torch.nn.Parameter]
) -> tuple[Features, dict[str, Tensor]]:
    features = host(images, route)
    if parameters:
        weighted(features).backward()
    return features, gradients(parameters)


def _crossed(case: Case, host: Host, routes: Sequence[str | Names]) -> dict[str, Tensor]:
    """Gradients where all passes come before any backward pass."""
    parameters = part_parameters(host)
    losses = [weighted(host(case.images(host, 4, seed), route)) for seed, route in enumerate(routes)]
    if parameters:
        for loss in losses:
            loss.backward()
    return gradients(parameters)


def _where(names: Names, task: str | None) -> Tensor:
    return torch.tensor([index for index, name in enumerate(names) if name == task])
