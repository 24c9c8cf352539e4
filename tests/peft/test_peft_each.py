"""Several tasks on the same images: exact, and what is shared runs once."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import doubles
from torch import Tensor, nn

from mtpeft.api import Method
from mtpeft.peft.host import Host
from mtpeft.plugins import create
from mtpeft.testing.case import Case, Readout, difference, gradients, part_parameters, weighted
from mtpeft.testing.zoo import zoo

TASKS = ("a", "b", "c")
FAMILIES = ("vit", "vit-reg4", "beit", "eva02", "swin", "convnext", "resnet")


def method(name: str, **settings) -> Method:
    return create("methods", name, settings, name)


def host_of(family: str, *methods: Method, tasks: Sequence[str] = TASKS) -> Host:
    """In double precision and evaluation mode, every part moved away from where it starts."""
    torch.manual_seed(0)
    host = Host(zoo()[family](), [(f"m{index}", made) for index, made in enumerate(methods)], tasks).eval()
    for task in tasks:
        host.add_head(task, Readout(host.info))
        host.bind_head(task, task)
    Case("methods", methods[0], family).randomize(host)
    return host.double()


def images_of(host: Host, count: int) -> Tensor:
    return torch.randn(count, 3, *host.image_size, generator=torch.Generator().manual_seed(1)).double()


def expect_exact(host: Host, rows: dict[str, list[int]], count: int = 2) -> None:
    """`Host.each` gives the outputs and gradients of one pass for each task."""
    images, parameters = images_of(host, count), part_parameters(host)
    each = host.each(images, rows)
    sum(weighted(each[task]) for task in rows).backward()
    together = gradients(parameters)
    alone = {task: host(images[own], task) for task, own in rows.items()}
    sum(weighted(alone[task]) for task in rows).backward()
    assert all(difference(each[task], alone[task]) < 1e-9 for task in rows)
    assert difference(together, gradients(parameters)) < 1e-8


def calls(host: Host, rows: dict[str, list[int]] | Sequence[str], count: int = 2) -> list[list[int]]:
    """For each block, the number of samples of each of its calls."""
    seen: dict[str, list[int]] = {path: [] for path in host.sites[-1].model.blocks}
    handles = [
        host.backbone.get_submodule(path).register_forward_hook(lambda module, x, y, found=found: found.append(len(y)))
        for path, found in seen.items()
    ]
    host.each(images_of(host, count), rows)
    for handle in handles:
        handle.remove()
    return list(seen.values())


def late(**settings) -> Method:
    """A part of each task's own in the last block."""
    return method("lora", scope="task", at="mlp.fc1 | conv2", blocks="last:1", **settings)


SHARED = {
    "lora": lambda: method("lora"),
    "weights": lambda: method("bitfit"),
    "inputs": doubles.Stretched,
}


@pytest.mark.parametrize("shared", SHARED)
@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_before_the_fork_are_called_once(family, shared):
    host = host_of(family, SHARED[shared](), late())
    expect_exact(host, {"b": [1], "a": [0, 1], "c": [1, 0]})
    *before, last = calls(host, TASKS)
    assert before == [[2]] * len(before) and last == [6]


@pytest.mark.parametrize("family", FAMILIES)
def test_where_nothing_differs_all_blocks_are_called_once(family):
    host = host_of(family, method("lora"))
    expect_exact(host, {task: [0, 1] for task in TASKS})
    assert all(rows == [2] for rows in calls(host, TASKS))


@pytest.mark.parametrize("family", ["vit", "vit-reg4", "eva02"])
def test_side_parts_of_the_tasks_own_leave_the_backbone_to_one_call(family):
    host = host_of(family, method("lst", scope="task"))
    expect_exact(host, {"a": [0, 1], "b": [1]})
    assert all(rows == [2] for rows in calls(host, TASKS))


PER_TASK = {
    "copies inside shared state": [doubles.Factored],
    "tokens that are carried on": [lambda: method("vpt-shallow"), late],
    "tokens of each block": [lambda: method("vpt-deep"), late],
    "tokens of the tasks' own": [lambda: method("vpt-deep", scope="task", blocks="last:1")],
    "keys and values": [doubles.Prefixes, lambda: doubles.Prefixes(scope="task", blocks="last:1")],
    "side parts behind a fork": [lambda: method("lst"), late],
    "a router that knows the task": [lambda: method("hydra-lora", route="task", blocks="last:1")],
    "all tasks seen act": [doubles.Accumulated],
    "a stream through the network": [doubles.Highways, late],
    "features of two passes": [doubles.Queried],
    "weights of the tasks' own": [lambda: method("bitfit", scope="task")],
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("case", PER_TASK)
def test_every_kind_is_exact(case, checkpointing):
    host = host_of("vit", *(make() for make in PER_TASK[case]))
    host.checkpointing(checkpointing)
    host.train()
    for module in host.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    expect_exact(host, {"b": [1], "a": [0, 1], "c": [1, 0]})


def test_a_stream_of_scratch_falls_back_to_a_copy_for_each_task():
    host = host_of("vit", doubles.Highways(), late())
    assert calls(host, TASKS)[-1][-1] == 6


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=3))
def test_any_rows_of_any_tasks(chosen):
    rows = dict(zip(TASKS, chosen, strict=False))
    host = host_of("vit", method("lora"), late())
    expect_exact(host, rows, count=4)


def test_gradients_kept_apart_are_those_of_each_task():
    host = host_of("vit", method("lora"), late())
    images, shared = images_of(host, 2), host.shared_parameters()
    with host.task_gradients() as kept:
        each = host.each(images, TASKS)
        sum(weighted(features) for features in each.values()).backward()
        rows = kept.rows()
    host.zero_grad(set_to_none=True)
    for index, task in enumerate(kept.tasks):
        weighted(host(images, task)).backward()
        assert difference({name: rows[name][index] for name in shared}, gradients(shared)) < 1e-9


@pytest.mark.parametrize("training", [False, True])
def test_predict_asks_several_heads_at_once(training):
    host = host_of("vit", method("lora"), late()).train(training)
    images = images_of(host, 3)
    found = host.predict(images, ["b", "a"])
    assert list(found) == ["b", "a"]
    assert all(difference(found[task], host.predict(images, task)) < 1e-9 for task in found)


def test_tasks_of_a_group_are_not_told_apart_in_testing():
    host = host_of("vit", method("lora"), late())
    host.add_head("all", Readout(host.info).double(), group=True)
    for task in ("a", "b"):
        host.bind_head(task, "all")
    images = images_of(host, 2)
    found = host.predict(images, TASKS)
    assert torch.equal(found["a"], found["b"]) and torch.equal(found["a"], host.predict(images, "a"))
    assert torch.equal(host.predict(images, ["b", "a"])["a"], found["a"])
