"""Branches of earlier tasks: frozen, acting, orthogonal to the new one where a method says so; counts and restarts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import training_toy
from support.continual import images, make, same, stage, train

from mtpeft.api import Host, NotApplicable, UsageError
from mtpeft.plugins import resolve
from mtpeft.testing import zoo
from mtpeft_plugins.continual.inflora import complement, grown, leading

NAMES = ("o-lora", "inflora", "sd-lora")


@pytest.fixture(autouse=True)
def toy(installed_plugins, monkeypatch):
    monkeypatch.setattr("mtpeft.files.sync", lambda path: None)
    training_toy.register()


def branches(host, name):
    """Owner -> site -> part."""
    return {owner: dict(parts.items()) for owner, parts in host.parts.by_owner[name].items()}


def jolt(host, tasks):
    """Move what these tasks train."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in host.trainable(tasks).values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


# --- all of them


@pytest.mark.parametrize("name", NAMES)
def test_earlier_branches_are_frozen_and_act(name):
    host = make(name, beside=None)
    routine, here = host.routines[name], stage(host, ("b",), ("a", "b"), stage=1, stages=2)
    jolt(host, ("a", "b"))
    routine.calibrate(here)
    routine.begin_stage(here)
    assert host.frozen == {"a"}
    before = host.tensors("a")
    before = {n: t.clone() for n, t in before.items()}
    features = host(images("a"), "b").pooled
    assert torch.equal(features, host(images("a"), None).pooled) and torch.equal(
        features, host(images("a"), "a").pooled
    )
    jolt(host, ("a", "b"))
    assert all(torch.equal(t, before[n]) for n, t in host.tensors("a").items())
    with torch.no_grad():
        for tensor in host.tensors("a").values():
            tensor.zero_()
    assert not torch.equal(features, host(images("a"), "b").pooled)
    assert {"a", "b"} <= host.ownership.acting("b")


@pytest.mark.parametrize("name", NAMES)
def test_what_acts_is_one_weight_that_merges(name):
    host = make(name, beside=None)
    jolt(host, ("a", "b"))
    features = host(images("a"), "a").pooled
    host.merge("a")
    torch.testing.assert_close(host(images("a"), "a").pooled, features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings", "count"),
    [("inflora", {}, 184_320), ("sd-lora", {"at": "attn.q attn.v"}, 368_640),
     ("o-lora", {"at": "attn.q attn.v", "rank": 10}, 368_640), ("sd-lora", {}, 368_640)],
)  # fmt: skip
def test_counts_on_vit_base(name, settings, count):
    with torch.device("meta"):
        backbone = timm.create_model("vit_base_patch16_224", pretrained=False, num_classes=0)
        host = Host(backbone, [(name, resolve("methods", name)(**settings))], ["a", "b"])
    assert host.count().per_task == {"a": count, "b": count}
    assert host.count().shared == (2 * 24 if name == "sd-lora" else 0)


@pytest.mark.parametrize("name", NAMES)
def test_classes_are_added_and_the_run_resumes_in_its_second_stage(tmp_path, name):
    whole = train(tmp_path / "whole", name)
    assert whole.host.frozen == {"a"} and len(whole.host.heads["g"].classes) == 4
    assert same(whole, train(tmp_path / "cut", name, stop=4), kept=True)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_stage_is_final_for_its_branch(tmp_path, name):
    one = train(tmp_path / "one", name)
    other = train(tmp_path / "other", name, "tasks.b.count=6")
    keep = [run.host.tensors("a") for run in (one, other)]
    assert all(torch.equal(t, keep[1][n]) for n, t in keep[0].items())


# --- o-lora


def test_o_loras_penalty_is_the_squared_overlap_of_its_branches():
    host = make("o-lora", beside=None, at="attn.q", orthogonality=2.0, decay=0.5)
    routine, here = host.routines["o-lora"], stage(host, ("b",), ("a", "b"))
    routine.begin_stage(here)
    jolt(host, ("b",))
    parts, wanted = branches(host, "o-lora"), 0.0
    for site, own in parts["b"].items():
        overlap = parts["a"][site].A @ own.A.t()
        wanted += 2.0 * overlap.square().sum().item() + 0.5 * (own.A.square().sum() + own.B.square().sum()).item()
    assert routine.penalty(here).item() == pytest.approx(wanted, rel=1e-5)
    assert make("o-lora").routines["o-lora"].penalty(stage(host, ("a",), ("a",))) is None


def test_o_loras_subspaces_become_orthogonal():
    host = make("o-lora", beside=None, at="attn.q", rank=4)
    routine, here = host.routines["o-lora"], stage(host, ("b",), ("a", "b"))
    routine.begin_stage(here)
    optimizer = torch.optim.SGD([part.A for part in branches(host, "o-lora")["b"].values()], 0.2)
    start = routine.penalty(here).item()
    for _ in range(120):
        optimizer.zero_grad()
        routine.penalty(here).backward()
        optimizer.step()
    assert routine.penalty(here).item() < 1e-3 * start
    assert min(float(part.A.detach().norm()) for part in branches(host, "o-lora")["b"].values()) > 0.3


# --- inflora


def low_rank(width, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(width, rank, generator=generator, dtype=torch.float64)
    return factor @ factor.t()


def test_infloras_directions_are_outside_of_earlier_tasks_inputs():
    host = make("inflora", beside=None, rank=3, start=0.7, end=0.7)
    routine = host.routines["inflora"]
    for number, task in enumerate("ab"):
        here = stage(host, (task,), "ab"[: number + 1], stage=number, stages=2)
        taken = {path: routine.basis(path, 32) for path in ("blocks.0.attn.qkv", "blocks.2.attn.qkv")}
        routine.calibrate(here)
        if task == "b":
            for path, basis in taken.items():
                part = branches(host, "inflora")["b"][path.replace("qkv", "k")]
                assert basis.shape[1] > 0 and (part.A.double() @ basis).abs().max() < 1e-5
                torch.testing.assert_close(part.A @ part.A.t(), torch.eye(3), atol=1e-4, rtol=0)
        jolt(host, (task,))
        routine.end_stage(here)


def test_infloras_first_directions_lead_the_inputs():
    host = make("inflora", beside=None, rank=3)
    seen = []
    module = host.attachments.model.modules["blocks.1.attn.qkv"]
    handle = module.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().flatten(0, 1)))
    host(images("a"), "a")
    handle.remove()
    host.routines["inflora"].calibrate(stage(host, ("a",), ("a",), stages=2))
    directions = torch.linalg.svd(seen[0], full_matrices=False)[2][:3]
    cosines = (branches(host, "inflora")["a"]["blocks.1.attn.v"].A * directions).sum(1).abs()
    torch.testing.assert_close(cosines, torch.ones(3), atol=1e-4, rtol=0)


@given(st.integers(0, 1000), st.integers(2, 12), st.floats(0.5, 1.0))
def test_a_grown_basis_is_orthonormal_holds_the_old_one_and_is_the_smallest(seed, rank, share):
    basis = grown(torch.zeros(12, 0, dtype=torch.float64), low_rank(12, 2, seed + 1), 1.0)
    gram = low_rank(12, rank, seed)
    found = grown(basis, gram, share)
    size, inside = found.shape[1], (found.t() @ gram @ found).trace() / gram.trace()
    torch.testing.assert_close(found.t() @ found, torch.eye(size, dtype=torch.float64))
    assert (basis - found @ (found.t() @ basis)).abs().max() < 1e-9
    assert inside >= share - 1e-6
    if size > basis.shape[1]:
        fewer = found[:, :-1]
        assert (fewer.t() @ gram @ fewer).trace() / gram.trace() < share
    rest = complement(found)
    assert rest.shape == (12, 12 - size) and (rest.t() @ found).abs().max() < 1e-9 if size < 12 else True
    assert (leading(found, gram, 3).t() @ found).abs().max() < 1e-9


def test_the_smaller_of_a_basis_and_its_complement_is_kept():
    routine = make("inflora", beside=None).routines["inflora"]
    for size in (0, 3, 6, 9, 12):
        basis = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64)).Q[:, :size]
        routine.remember("p", basis)
        again = routine.basis("p", 12)
        torch.testing.assert_close(again @ again.t(), basis @ basis.t(), atol=1e-5, rtol=0)
        assert [t.shape[1] for t in routine.state().values()] == [min(size, 12 - size)]


def test_inflora_says_what_it_needs():
    host = make("inflora", beside=None)
    with pytest.raises(UsageError, match="must know how many stages"):
        host.routines["inflora"].end_stage(stage(host, ("a",), ("a",)))
    with pytest.raises(NotApplicable, match=r"inflora takes the input of blocks.0.attn.k, which is no linear layer"):
        Host(zoo()["beit"](), [("inflora", resolve("methods", "inflora")())], ["a"])
    with pytest.raises(UsageError, match="40 directions of the 32 inputs"):
        make("inflora", rank=40)


# --- sd-lora


def test_sd_loras_weight_is_the_sum_of_gains_and_directions():
    host = make("sd-lora", beside=None, at="attn.q", rank=2)
    jolt(host, ("a", "b"))
    routine, plain = host.routines["sd-lora"], zoo()["vit"]().state_dict()["blocks.0.attn.qkv.weight"]
    part = branches(host, "sd-lora")["shared"]["blocks.0.attn.q"]
    change = sum(part.B.gains[t] * part.B.copies[t] @ part.A.copies[t] for t in "ab")
    torch.testing.assert_close((host.merged_state("a")["blocks.0.attn.qkv.weight"] - plain)[:32], change)
    before = host(images("a"), "a").pooled
    routine.end_stage(stage(host, ("a",), ("a",)))
    torch.testing.assert_close(host(images("a"), "a").pooled, before)
    for copies in (part.A.copies, part.B.copies):
        assert copies["a"].norm().item() == pytest.approx(1, rel=1e-5) != copies["b"].norm().item()


def test_all_gains_train_and_earlier_directions_do_not():
    host = make("sd-lora", beside=None, at="attn.q")
    routine, here = host.routines["sd-lora"], stage(host, ("b",), ("a", "b"))
    routine.begin_stage(here)
    jolt(host, ("a", "b"))
    host.predict(images("b"), "b").square().sum().backward()
    part = branches(host, "sd-lora")["shared"]["blocks.0.attn.q"]
    assert part.B.gains["a"].requires_grad and part.B.gains["b"].grad.any()
    assert part.A.copies["b"].grad.any() and not part.A.copies["a"].requires_grad


def test_a_removed_task_takes_its_direction_and_gain_along():
    host = make("sd-lora", beside=None, at="attn.q")
    host.remove_task("a")
    part = branches(host, "sd-lora")["shared"]["blocks.0.attn.q"]
    assert list(part.B.gains) == list(part.B.copies) == ["b"]


# --- lae


def test_lae_answers_with_the_surer_of_two_modules():
    host = make("lae", beside=None)
    jolt(host, ("a",))
    parts = branches(host, "lae")["shared"].values()
    online = host.head_of("a")(host(images("a"), "a")).softmax(1)
    answer = host.predict(images("a"), "a")
    for part in parts:
        part.follow(0.0)
    assert all(torch.equal(part.A_offline, part.A) and torch.equal(part.B_offline, part.B) for part in parts)
    torch.testing.assert_close(host.predict(images("a"), "a").exp(), online)
    with torch.no_grad():
        for part in parts:
            part.B.zero_()  # as it was before: the identity, which the offline module was in the first answer
    torch.testing.assert_close(answer, host.predict(images("a"), "a"))


def test_laes_offline_module_follows_and_the_online_one_waits_for_the_head():
    host = make("lae", beside=None, freeze=0.5, momentum=0.75)
    routine, part = host.routines["lae"], next(iter(branches(host, "lae")["shared"].values()))
    first = stage(host, ("a",), ("a",), steps=4)
    routine.begin_stage(first)
    assert not host.frozen and not routine.begin_update(first)
    routine.end_stage(first)
    second = stage(host, ("b",), ("a", "b"), steps=4)
    routine.begin_stage(second)
    assert host.frozen == {"shared"} and routine.state()
    waited = []
    for second.step in range(4):
        waited.append(routine.begin_update(second))
    assert waited == [False, False, True, False] and not host.frozen and not routine.state()
    jolt(host, ("b",))
    before, routine_part = part.B_offline.clone(), part.B.detach().clone()
    routine.after_step(second)
    torch.testing.assert_close(part.B_offline, 0.75 * before + 0.25 * routine_part)


def test_lae_has_its_published_size():
    with torch.device("meta"):
        backbone = timm.create_model("vit_base_patch16_224", pretrained=False, num_classes=0)
        host = Host(backbone, [("lae", resolve("methods", "lae")(blocks="0-4"))], ["a", "b"])
    assert host.count().parts == 76_800


@pytest.mark.parametrize("stop", [4, 5])
def test_lae_resumes_while_it_waits_and_afterwards(tmp_path, monkeypatch, stop):
    method = resolve("methods", "lae")
    monkeypatch.setattr(method, "declares", replace(method.declares, accepts=()))
    whole = train(tmp_path / "whole", "lae")
    assert not whole.host.frozen
    assert same(whole, train(tmp_path / "cut", "lae", stop=stop), kept=True)
