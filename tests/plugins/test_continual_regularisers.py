"""Regularisers and replay: their equations by hand, what they are at zero strength, their memory, and restarts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import training_toy
from support.continual import images, make, same, stage, targets, train

from mtpeft import plugins
from mtpeft.api import MtpeftError, TaskBatch, UsageError
from mtpeft.plugins import resolve
from mtpeft.training.session import Session
from mtpeft.training.setup import setup
from mtpeft_plugins.continual.gem import projected
from mtpeft_plugins.continual.lwf import softened


@pytest.fixture(autouse=True)
def toy(installed_plugins, monkeypatch):
    """The toy's task type stands for classification."""
    monkeypatch.setattr("mtpeft.files.sync", lambda path: None)
    for name in ("lwf", "der-pp"):
        method = resolve("methods", name)
        monkeypatch.setattr(method, "declares", replace(method.declares, accepts=()))
    training_toy.register()


def move(host, tasks=("a",)):
    """Add .1 to everything that trains."""
    with torch.no_grad():
        for parameter in host.trainable(tasks).values():
            parameter.add_(0.1)


def head_terms(host):
    """Inputs ``(N, C)`` of task a's head, its outputs ``(N, 3)``, and the labels as one-hot rows."""
    seen = []
    handle = host.heads["a"].register_forward_hook(lambda head, args, out: seen.append((args[0], out)))
    with torch.no_grad():
        host.predict(images("a"), "a")
    handle.remove()
    features, outputs = seen[0]
    parts = [features.pooled, *(m.square().mean((2, 3)) for m in features.maps), features.prefix.square().mean(1)]
    return torch.cat(parts, 1), outputs, torch.eye(3)[[int(t["label"]) for t in targets()]]


# --- anchors


@pytest.mark.parametrize(("name", "factor"), [("ewc", 400.0), ("mas", 2.0)])
def test_anchors_pull_back_by_what_mattered(name, factor):
    host = make(name)
    routine, here = host.routines[name], stage(host, ("a",), ("a",))
    assert routine.penalty(here) is None
    routine.end_stage(here)
    assert routine.penalty(here).item() == 0
    move(host)
    host.zero_grad()
    routine.penalty(here).backward()
    for label, parameter in host.trainable(("a",)).items():
        torch.testing.assert_close(parameter.grad, factor * routine.importance[label] * 0.1, rtol=1e-4, atol=1e-7)


def test_ewc_weighs_by_the_fisher_information():
    host = make("ewc")
    inputs, outputs, wanted = head_terms(host)
    host.routines["ewc"].end_stage(stage(host, ("a",), ("a",)))
    errors = outputs.softmax(1) - wanted
    fisher = torch.einsum("nk,nc->kc", errors.square(), inputs.square()) / len(inputs)
    torch.testing.assert_close(host.routines["ewc"].importance["head:a/weight"], fisher, rtol=1e-4, atol=1e-8)


def test_mas_weighs_by_the_sensitivity_of_the_squared_outputs():
    host = make("mas")
    inputs, outputs, _ = head_terms(host)
    host.routines["mas"].end_stage(stage(host, ("a",), ("a",)))
    sensitivity = torch.einsum("nk,nc->kc", (2 * outputs).abs(), inputs.abs()) / len(inputs)
    torch.testing.assert_close(host.routines["mas"].importance["head:a/weight"], sensitivity, rtol=1e-4, atol=1e-8)


def test_fishers_add_up_over_stages_and_the_anchor_is_the_last():
    host = make("ewc", decay=0.5)
    routine = host.routines["ewc"]
    routine.end_stage(stage(host, ("a",), ("a",)))
    first = {n: t.clone() for n, t in routine.importance.items() if not n.startswith("head")}
    move(host)
    host.routines["ewc"].end_stage(stage(host, ("b",), ("a", "b")))
    alone = make("ewc")
    with torch.no_grad():
        for mine, other in zip(alone.parameters(), host.parameters(), strict=True):
            mine.copy_(other)
    alone.routines["ewc"].end_stage(stage(alone, ("b",), ("b",)))
    for name, before in first.items():
        wanted = 0.5 * before + alone.routines["ewc"].importance[name]
        torch.testing.assert_close(routine.importance[name], wanted)
        assert torch.equal(routine.anchors[name], host.trainable(("a",))[name])
    assert {"head:a/weight", "head:b/weight"} <= routine.anchors.keys()


def test_rows_of_new_classes_are_free():
    host = make("ewc", tasks=("a",))
    routine, here = host.routines["ewc"], stage(host, ("a",), ("a",))
    routine.end_stage(here)
    host.heads["a"].extend(("fourth",))
    host.focus(("a",))
    with torch.no_grad():
        host.heads["a"].weight[3] += 5
    assert routine.penalty(here).item() == 0
    routine.end_stage(here)
    assert routine.importance["head:a/weight"].shape == host.heads["a"].weight.shape


def test_importance_may_be_measured_on_fewer_samples():
    whole, some = make("ewc"), make("ewc", every=2)
    for host in (whole, some):
        host.routines["ewc"].end_stage(stage(host, ("a",), ("a",)))
    pairs = [(host.routines["ewc"].importance["head:a/weight"]) for host in (whole, some)]
    assert not torch.equal(*pairs) and pairs[1].any()


# --- distillation


def test_lwf_keeps_old_outputs_by_the_cross_entropy_of_softened_ones():
    host = make("lwf", strength=3.0)
    routine, here = host.routines["lwf"], stage(host, ("b",), ("a", "b"))
    with torch.no_grad():
        before = host.predict(images("b"), "a")
    routine.begin_stage(here)
    assert routine.trains(here) == ("a",)
    move(host, ("a", "b"))
    outputs = host.predict(images("b"), "b")
    here.batch = (TaskBatch("b", (), images("b"), targets(), None, outputs),)
    now = host.predict(images("b"), "a")
    wanted = -((before / 2).softmax(1) * (now / 2).log_softmax(1)).sum(1).mean()
    assert routine.penalty(here).item() == pytest.approx(3 * wanted.item(), rel=1e-5)
    assert routine.state().keys() == host.trainable(("a",)).keys()
    routine.end_stage(here)
    assert not routine.state()


def test_the_teacher_stands_in_without_a_trace():
    host = make("lwf")
    routine, here = host.routines["lwf"], stage(host, ("b",), ("a", "b"))
    routine.begin_stage(here)
    move(host, ("a", "b"))
    host.focus(("a", "b"))
    host.train()
    loss = here.loss("b", images("b"), targets())
    plain = torch.autograd.grad(loss, list(host.trainable(("b",)).values()), retain_graph=True)
    values = {n: (p, p.data_ptr()) for n, p in host.trainable(("a", "b")).items()}
    routine.taught(here, images("b"))
    again = torch.autograd.grad(loss, list(host.trainable(("b",)).values()))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert host.training and all(p.data_ptr() == pointer for p, pointer in values.values())


def test_softening_is_least_at_the_same_outputs():
    outputs = torch.randn(5, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(softened(outputs, outputs.detach(), 2.0), outputs)
    assert gradient.abs().max() < 1e-6


# --- replay


def batch(task="a", rows=range(6)):
    wanted = [targets()[row] for row in rows]
    outputs = torch.arange(3.0) + torch.tensor(list(rows))[:, None]
    return TaskBatch(task, tuple((task, row) for row in rows), images(task)[list(rows)], wanted, None, outputs)


def filled(name="er", tasks="ab", steps=4, **settings):
    host = make(name, **settings)
    routine = host.routines[name]
    for number, task in enumerate(tasks):
        here = stage(host, (task,), tasks[: number + 1], stage=number)
        routine.begin_stage(here)
        for here.step in range(steps):
            routine.begin_update(here)
            here.batch = (batch(task),)
            routine.keep(here)
    return host, routine, here


def offered(host, tasks, **more):
    """A fresh routine to which each task's six samples were shown once, one task after another."""
    routine = host.routines["er"] = host.methods["er"].routine()
    for number, task in enumerate(tasks):
        here = stage(host, (task,), tasks[: number + 1], stage=number, **more)
        here.batch = (batch(task),)
        routine.keep(here)
    return routine


def test_a_memory_is_a_fair_sample_that_repeats():
    host, counts = make("er", samples=4, beside=None), Counter()
    for seed in range(60):
        kept = list(offered(host, "ab", seed=seed).memory)
        assert len(kept) == 4 and kept == list(offered(host, "ab", seed=seed).memory)
        counts.update(kept)
    assert len(counts) == 12 and min(counts.values()) >= 8  # 20 are expected of each, with a deviation of 3.7


THREE = make("er", tasks="abc", balanced=True, beside=None)


@given(st.integers(1, 9), st.lists(st.sampled_from("abc"), min_size=1, max_size=4, unique=True))
def test_a_balanced_memory_has_as_many_of_each_task(samples, tasks):
    THREE.methods["er"].samples = samples
    routine = offered(THREE, tasks)
    kept = [sum(task == name for task, _ in routine.memory) for name in tasks]
    assert sum(kept) == min(samples, 6 * len(tasks)) and max(kept) - min(kept) <= 1


def test_a_restored_memory_draws_and_keeps_the_same():
    _, routine, here = filled("der-pp", samples=7)
    other = make("der-pp", samples=7)
    other.routines["der-pp"].give_back({n: t.clone() for n, t in routine.kept().items()})
    there = stage(other, here.tasks, here.seen, stage=here.stage, step=here.step)
    for r, c in ((routine, here), (other.routines["der-pp"], there)):
        r.begin_stage(c)
        r.begin_update(c)
        c.batch = (batch("b", (4, 5)),)
    assert routine.drawn(here, "labels") == other.routines["der-pp"].drawn(there, "labels")
    for r, c in ((routine, here), (other.routines["der-pp"], there)):
        c.step += 1
        r.keep(c)
    one, two = routine.kept(), other.routines["der-pp"].kept()
    assert one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


def test_the_loss_of_memory_is_the_mean_over_its_samples():
    _, routine, here = filled("er", samples=9, batch=9, weight=0.5)
    wanted = [here.loss(task, images(task)[[row]], [targets()[row]]).item() for task, row in routine.memory]
    here.batch = ()
    assert routine.penalty(here).item() == pytest.approx(0.5 * sum(wanted) / 9, rel=1e-4)
    assert routine.trains(here) == ("a",)


def test_der_holds_logits_to_what_they_were():
    host, routine, here = filled("der-pp", samples=9, batch=9, weight=0.0, alpha=0.25)
    host.heads["a"].extend(("fourth",))
    distances = []
    for task, row in routine.memory:
        outputs = host.predict(images(task)[[row]], task)[0, :3]
        distances.append((outputs - (torch.arange(3.0) + row)).square().mean().item())
    here.batch = ()
    assert routine.penalty(here).item() == pytest.approx(0.25 * sum(distances) / 9, rel=1e-4)


@pytest.mark.parametrize("name", ["er", "der-pp", "gem"])
def test_a_budget_of_bytes_is_never_exceeded(name):
    image = 3 * 32 * 32
    _, routine, _ = filled(name, megabytes=3.5 * image / 1e6)
    assert len(routine.memory) == 3 and routine.memory.bytes <= routine.memory.budget
    with pytest.raises(MtpeftError, match=f"^{name} would keep"):
        filled(name, megabytes=0.5 * image / 1e6)


# --- gem


@given(st.integers(0, 10_000))
def test_one_constraint_has_its_closed_form(seed):
    g, c = torch.randn(2, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    wanted = g - min(float(g @ c), 0.0) / (c @ c) * c
    torch.testing.assert_close(projected(g, c[None]), wanted)


@given(st.integers(0, 10_000), st.integers(2, 5))
def test_a_projection_satisfies_the_conditions_of_the_nearest_point(seed, count):
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(9, generator=generator, dtype=torch.float64)
    constraints = torch.randn(count, 9, generator=generator, dtype=torch.float64)
    found = projected(g, constraints)
    slack = constraints @ found
    multipliers = torch.linalg.lstsq(constraints.t(), (found - g)[:, None]).solution[:, 0]
    assert slack.min() > -1e-6 and multipliers.min() > -1e-6
    assert (slack * multipliers).abs().max() < 1e-5


def test_gem_leaves_a_gradient_that_harms_nobody_and_mends_one_that_does():
    host, routine, here = filled("gem", samples=12, batch=12, margin=0.0)
    host.focus((*here.tasks, *routine.trains(here)))
    parameters = list(host.trainable(("a", "b")).values())
    old = routine.gradient(here, "a", parameters)
    for sign in (1.0, -1.0):
        for parameter, piece in zip(parameters, old.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = sign * piece.view_as(parameter).clone()
        routine.after_backward(here)
        now = torch.cat([p.grad.flatten() for p in parameters])
        assert torch.equal(now, old) if sign == 1 else now.abs().max() < 1e-5 * old.abs().max()


# --- runs


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """Fine-tuning."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtpeft.files.sync", lambda path: None)
        training_toy.register()
        run = train(tmp_path_factory.mktemp("tuned") / "run", "toy@shared")
    plugins.reset()
    return run


@pytest.mark.parametrize(
    "settings",
    [("er", "samples=0"), ("er", "weight=0"), ("der-pp", "samples=0"), ("gem", "samples=0"), ("lwf", "strength=0"),
     ("ewc", "strength=0"), ("mas", "strength=0")],
)  # fmt: skip
def test_at_zero_they_are_fine_tuning_bit_for_bit(tmp_path, tuned, settings):
    name, setting = settings
    run = train(tmp_path / "run", f"toy@shared+{name}", f"methods.{name}.{setting}")
    assert same(tuned, run)


@pytest.mark.parametrize("name", ["er", "der-pp", "gem", "lwf", "ewc", "mas"])
def test_they_change_the_second_stage_and_resume_in_it_bit_for_bit(tmp_path, tuned, name):
    whole = train(tmp_path / "whole", f"toy@shared+{name}")
    assert not same(tuned, whole)
    assert same(whole, train(tmp_path / "cut", f"toy@shared+{name}", stop=4), kept=True)


def test_der_without_logits_is_replay(tmp_path):
    one = train(tmp_path / "er", "toy@shared+er", "methods.er.batch=8", "methods.er.weight=0.5")
    two = train(tmp_path / "der", "toy@shared+der-pp", "methods.der-pp.batch=8", "methods.der-pp.alpha=0")
    assert same(one, two)


def test_memory_and_anchors_go_along_with_a_task_added_later(tmp_path):
    settings = ("methods.er.samples=12", "methods.er.balanced=true", "schedule.steps=3")
    runs = []
    for task in "ab":
        plan = training_toy.config(
            tmp_path / task, *settings, f"tasks.{task}.count=12", tasks=f"{task}=colours", method="toy@shared+er+ewc"
        )
        session = Session.start(plan, source=tmp_path / "a" if task == "b" else None)
        session.train()
        runs.append(session.run.host.routines)
    first, second = runs
    assert len(first["er"].memory) == 12
    assert [sum(task == name for task, _ in second["er"].memory) for name in "ab"] == [6, 6]
    assert {"head:a/weight", "head:b/weight"} <= second["ewc"].anchors.keys()
    assert torch.equal(first["ewc"].anchors["head:a/weight"], second["ewc"].anchors["head:a/weight"])


@pytest.mark.parametrize("name", ["lwf", "der-pp"])
def test_what_compares_logits_refuses_other_tasks(tmp_path, name, monkeypatch):
    method = resolve("methods", name)
    monkeypatch.setattr(method, "declares", replace(method.declares, accepts=("cls",)))
    with pytest.raises(UsageError, match=f'task "a" is of type colours, and {name} serves cls'):
        setup(training_toy.config(tmp_path / "run", method=f"toy@shared+{name}"))
