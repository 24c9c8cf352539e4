"""AdaLoRA: its form, its budget, what it prunes, and that a restart in the middle changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from support.reparameterised import Reparameterised, close, detached

from mtpeft.api import Context
from mtpeft.peft.host import Host
from mtpeft.plugins import resolve
from mtpeft.testing import zoo


def small(**settings):
    model = Reparameterised("adalora", at="attn.qkv attn.proj", rank=4, target=2, interval=2, **settings)
    return model, model.host.routines["adalora"]


def step(model, routine, context, optimizer):
    model.host.zero_grad(set_to_none=True)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(context.step))
    (model.host(images, "task").pooled.square().mean() + routine.penalty(context)).backward()
    routine.after_backward(context)
    optimizer.step()
    routine.after_step(context)


def train(model, routine, first, last, steps=10):
    context = Context(model.host, ("task",), ("task",), steps=steps)
    optimizer = torch.optim.SGD(model.host.shared_parameters().values(), 0.05)
    for context.step in range(first, last):
        step(model, routine, context, optimizer)


def triplets(model):
    return torch.cat([part.l.detach() for part in model.parts.values()])


def test_the_update_is_p_diagonal_q():
    model, _ = small(alpha=8)
    t = detached(model.part("attn.proj"))
    assert close(model.change("attn.proj"), 2 * t["P"] @ torch.diag(t["l"]) @ t["Q"])


def test_the_penalty_is_zero_for_orthogonal_factors_and_a_mean_otherwise():
    model, routine = small(orthogonality=0.5)
    context = Context(model.host, ("task",), ("task",), steps=10)
    with torch.no_grad():
        for part in model.parts.values():
            part.P.copy_(torch.linalg.qr(torch.randn(part.P.shape)).Q)
            part.Q.copy_(torch.linalg.qr(torch.randn(part.Q.T.shape)).Q.T)
    assert routine.penalty(context).item() < 1e-10
    with torch.no_grad():
        for part in model.parts.values():
            part.P.mul_(2**0.5)  # P^T P - I is then I: r = 4 for half of the matrices
    assert routine.penalty(context).item() == pytest.approx(0.5 * 4 / 2, rel=1e-5)


def test_the_budget_falls_by_a_cubic():
    routine = resolve("methods", "adalora")(rank=12, target=8, warmup=0.1, settle=0.5).routine()
    assert [routine.budget(done, 1000) for done in (0, 100, 500, 1000)] == [12, 12, 8, 8]
    assert routine.budget(300, 1000) == pytest.approx(8 + 4 * 0.5**3)


def test_it_prunes_to_the_target_and_stays_there():
    model, routine = small()
    train(model, routine, 0, 10)
    assert int((triplets(model) != 0).sum()) == 2 * len(model.parts)


def test_it_prunes_what_matters_least():
    model, routine = small()
    context = Context(model.host, ("task",), ("task",), step=9, steps=10)
    important = {}
    for index, (site, part) in enumerate(model.parts.items()):
        for name, parameter in part.named_parameters():
            size = torch.full_like(parameter, 0.1)
            if name == "l":
                size += torch.tensor([0.0, 3, 0, 2]) if index % 2 else torch.tensor([5.0, 0, 4, 0])
            for what in ("size", "uncertainty"):
                important[f"shared/{site}/{name}/{what}"] = size
    routine.restore(important)
    routine.after_step(context)
    kept = [(part.l != 0).tolist() for part in model.parts.values()]
    assert kept == [[True, False, True, False], [False, True, False, True]] * (len(kept) // 2)


def test_each_owner_keeps_its_own_budget():
    torch.manual_seed(0)
    method = resolve("methods", "adalora")(scope="task", at="attn.qkv", rank=4, target=2)
    host = Host(zoo()["vit"](), [("adalora", method)], ["loud", "quiet"])
    context = Context(host, ("loud", "quiet"), ("loud", "quiet"), steps=10)
    for placed in host.parts_of(method, host.tasks):
        for parameter in placed.part.parameters():
            parameter.data.normal_()
            parameter.grad = torch.randn_like(parameter) * (100 if placed.owner == "loud" else 1)
    routine = host.routines["adalora"]
    routine.after_backward(context)
    context.step = 9
    routine.after_step(context)
    for task in host.tasks:
        kept = sum(int((placed.part.l != 0).sum()) for placed in host.parts_of(method, [task]))
        assert kept == 2 * len(host.parts_of(method, [task]))


def test_importance_is_a_smoothed_sensitivity_times_its_uncertainty():
    model, routine = small(smoothing=0.5)
    context = Context(model.host, ("task",), ("task",), steps=10)
    part = model.part("attn.proj")
    sizes, spreads = torch.zeros(4), torch.zeros(4)
    for gradient in (1.0, -3.0):
        for parameter in part.parameters():
            parameter.grad = torch.zeros_like(parameter)
        part.l.grad = torch.full((4,), gradient)
        routine.after_backward(context)
        now = (part.l.detach() * gradient).abs()
        sizes = (sizes + now) / 2
        spreads = (spreads + (now - sizes).abs()) / 2
    assert close(routine.score("shared/blocks.0.attn.proj", part), sizes * spreads)


def test_a_restart_in_the_middle_changes_nothing():
    model, routine = small()
    train(model, routine, 0, 4)
    kept = {name: tensor.clone() for name, tensor in routine.state().items()}
    twin, forgetful = copy.deepcopy(model), copy.deepcopy(model)
    for other, state in ((twin, kept), (forgetful, {})):
        other.host.routines["adalora"].restore({})
        other.host.routines["adalora"].restore(state)
    for other in (model, twin, forgetful):
        train(other, other.host.routines["adalora"], 4, 10)
    assert torch.equal(triplets(model), triplets(twin))
    assert not torch.equal(triplets(model) != 0, triplets(forgetful) != 0)


def test_a_stage_begins_and_ends_without_importance():
    model, routine = small()
    train(model, routine, 0, 2)
    assert routine.state()
    routine.end_stage(Context(model.host, ("task",), ("task",)))
    assert not routine.state()


def test_a_frozen_owner_is_neither_pruned_nor_penalised():
    model, routine = small()
    model.host.freeze("shared")
    before = triplets(model)
    context = Context(model.host, ("task",), ("task",), step=9, steps=10)
    assert routine.penalty(context) is None
    routine.after_step(context)
    assert torch.equal(triplets(model), before)
