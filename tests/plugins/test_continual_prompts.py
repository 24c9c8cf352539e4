"""Continual prompt methods: counts, their equations written again, what is chosen for whom, and runs that resume."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import load_file
from support import training_toy
from torch import Tensor, nn
from torch.nn import functional as F

from mtpeft.api import Context, Features, Host, TaskBatch, UsageError, resolve
from mtpeft.settings import build
from mtpeft.testing import method_checks, routing, zoo
from mtpeft.testing.case import Case, make_method
from mtpeft.training.session import Session
from mtpeft_plugins.continual import hide_prompt, s_prompts
from mtpeft_plugins.continual.coda_prompt import orthonormalise

SMALL = {
    "l2p": {"prompts": 4, "tokens": 2, "chosen": 2},
    "dualprompt": {"general": 2, "general_blocks": 1, "expert": 3},
    "coda-prompt": {"components": 6, "tokens": 4},
    "s-prompts": {"tokens": 2, "clusters": 2},
    "hide-prompt": {"tokens": 2, "align_epochs": 1},
}
CLASSES = {"a": ("0", "1"), "b": ("2", "3", "4")}


class Rows(nn.Module):
    """Logits ``(B, 5)`` of the pooled features."""

    classes = CLASSES["a"] + CLASSES["b"]

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 32))

    def forward(self, features: Features) -> Tensor:
        return F.linear(features.pooled, self.weight)


def made(name: str, tasks: Sequence[str] = ("a", "b"), **settings) -> Host:
    """A host whose parts are drawn at random, and whose tasks share one head."""
    torch.manual_seed(0)
    host = Host(zoo()["vit"](), [(name, build(resolve("methods", name), SMALL[name] | settings, "settings"))], tasks)
    for parameter in host.parts.parameters():
        nn.init.normal_(parameter, std=0.5)
    host.add_head("g", Rows(), group=True)
    for task in tasks:
        host.bind_head(task, "g")
    return host.eval()


def images(count: int = 5, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def batch(host: Host, task: str, count: int = 5, seed: int = 1) -> TaskBatch:
    pixels, own = images(count, seed), CLASSES[task]
    targets = [{"label": torch.tensor(index % len(own)), "classes": own} for index in range(count)]
    features = host(pixels, task)
    return TaskBatch(
        task, tuple((task, i) for i in range(count)), pixels, targets, features, host.head_of(task)(features)
    )


def context(host: Host, tasks: Sequence[str], seen: Sequence[str] = ("a", "b"), **more) -> Context:
    """A stage of ``tasks``, each with eight training images."""

    def batches(*, train: bool = True, tasks: Sequence[str] = tuple(tasks)):
        met = [batch(host, task, 8, seed=ord(task)) for task in tasks]
        return [(own.task, own.images, own.targets) for own in met]

    names = {task: CLASSES[task] for task in tasks}
    return Context(host, tuple(tasks), tuple(seen), classes=names, batches=batches, **more)


def parts_of(host: Host, owner: str) -> dict[str, nn.Module]:
    (name,) = host.methods
    return dict(host.parts.by_owner[name][owner].items())


def by_hand(pixels: Tensor, tokens: Tensor | None = None, prefixes=()) -> tuple[Tensor, Tensor]:
    """The backbone's tokens behind its final norm, and those of the extra ``tokens (B, p, d)``.

    ``prefixes``: for each block ``(keys, values)``, each ``(B, p, d)``.
    """
    vit = zoo()["vit"]()
    x = vit._pos_embed(vit.patch_embed(pixels))
    extra = 0 if tokens is None else tokens.shape[1]
    x = x if tokens is None else torch.cat([x[:, :1], tokens, x[:, 1:]], 1)
    for index, block in enumerate(vit.blocks):
        keys, values = prefixes[index] if index < len(prefixes) else (x[:, :0], x[:, :0])
        x = x + attention(block.attn, block.norm1(x), keys, values)
        x = x + block.mlp(block.norm2(x))
    x = vit.norm(x)
    return x[:, 0], x[:, 1 : 1 + extra]


def attention(module: nn.Module, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    q, k, v = module.qkv(x).chunk(3, -1)
    q, k, v = (
        t.unflatten(-1, (2, -1)).transpose(1, 2) for t in (q, torch.cat([keys, k], 1), torch.cat([values, v], 1))
    )
    mixed = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v
    return module.proj(mixed.transpose(1, 2).flatten(2))


def close(mine: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


# --- counts


@pytest.mark.parametrize(
    ("method", "settings", "tasks", "expected"),
    [
        ("l2p", {}, 3, 46_080),
        ("dualprompt", {}, 10, 253_440),
        ("dualprompt", {"general": 6, "expert": 20}, 10, 2 * 2 * 6 * 768 + 10 * (3 * 2 * 20 + 1) * 768),
        ("coda-prompt", {}, 3, 3_840_000),
        ("s-prompts", {}, 1, 7_680),
        ("s-prompts", {}, 7, 53_760),
        ("hide-prompt", {}, 10, 384_000),
        ("hide-prompt", {"tokens": 20}, 10, 1_536_000),
    ],
)
def test_counts_are_those_of_the_papers(method, settings, tasks, expected):
    with torch.device("meta"):
        vit = timm.create_model("vit_base_patch16_224", pretrained=False, num_classes=0)
        host = Host(vit, [(method, resolve("methods", method)(**settings))], [f"t{index}" for index in range(tasks)])
    assert host.count().parts == expected


# --- L2P


@torch.no_grad()
def test_l2p_takes_the_nearest_prompts_of_each_image_and_reads_their_mean():
    host, pixels = made("l2p"), images()
    pool = parts_of(host, "shared")["blocks.0.tokens"].common
    query = by_hand(pixels)[0]
    close(host.plain(pixels).pooled, query)
    expected = []
    for row in range(5):
        nearest = sorted(range(4), key=lambda m: -float(F.cosine_similarity(query[row], pool.keys[m], dim=0)))[:2]
        tokens = torch.cat([pool.prompts[m] for m in nearest])
        expected.append(by_hand(pixels[row : row + 1], tokens[None])[1].mean(1))
    close(host(pixels, "a").pooled, torch.cat(expected))
    assert len({tuple(chosen) for chosen in pool.nearest(query)[1].tolist()}) > 1  # images differ in what they take


def test_l2p_pulls_the_chosen_keys_and_no_others():
    host = made("l2p", pull=0.3)
    here = context(host, ("a", "b"))
    here.batch = (batch(host, "a", 2), batch(host, "b", 3, seed=7))
    pool = parts_of(host, "shared")["blocks.0.tokens"].common
    penalty = host.routines["l2p"].penalty(here)
    terms = []
    for own in here.batch:
        cosines = F.cosine_similarity(by_hand(own.images)[0][:, None], pool.keys[None], dim=-1)
        terms.append((1 - cosines.sort(descending=True).values[:, :2]).sum() / len(own.images))
    close(penalty, 0.3 * sum(terms))
    (mine,), (theirs,) = (torch.autograd.grad(value, pool.keys) for value in (penalty, 0.3 * sum(terms)))
    close(mine, theirs)
    chosen = {m for own in here.batch for m in pool.nearest(by_hand(own.images)[0])[1].flatten().tolist()}
    assert {m for m in range(4) if mine[m].any()} == chosen


def test_l2p_refuses_to_take_more_than_there_is():
    with pytest.raises(UsageError, match="takes 5 prompts, and the pool holds 4"):
        build(resolve("methods", "l2p"), {"prompts": 4, "chosen": 5}, "settings")


# --- DualPrompt


def prefix(part: nn.Module, count: int) -> tuple[Tensor, Tensor]:
    return part.keys.expand(count, -1, -1), part.values.expand(count, -1, -1)


def test_dualprompt_has_general_prefixes_first_and_then_the_tasks_own():
    host, pixels = made("dualprompt"), images()
    general, expert = parts_of(host, "shared"), parts_of(host, "b")
    assert list(general) == ["blocks.0.attn"] and list(expert) == ["blocks.1.attn", "blocks.2.attn"]
    prefixes = [prefix(part, 5) for part in (*general.values(), *expert.values())]
    close(host(pixels, "b").pooled, by_hand(pixels, prefixes=prefixes)[0])


def test_dualprompt_pulls_the_key_of_each_task_to_its_own_images():
    host = made("dualprompt")
    here = context(host, ("a", "b"))
    here.batch = (batch(host, "a", 2), batch(host, "b", 3, seed=7))
    keys = {task: next(iter(parts_of(host, task).values())).common.key for task in "ab"}
    expected = sum((1 - F.cosine_similarity(by_hand(own.images)[0], keys[own.task][None])).mean() for own in here.batch)
    close(host.routines["dualprompt"].penalty(here), expected)
    here.batch = here.batch[:1]
    host.routines["dualprompt"].penalty(here).backward()
    assert keys["a"].grad.any() and keys["b"].grad is None


# --- retrieval


def nearest_by_hand(host: Host, pixels: Tensor) -> list[str]:
    """Whose parts shall answer each image."""
    (name,) = host.methods
    query = by_hand(pixels)[0]
    own = {task: next(iter(parts_of(host, task).values())) for task in "ab"}
    if name == "dualprompt":
        scores = {task: F.cosine_similarity(query, part.common.key[None]) for task, part in own.items()}
    elif name == "s-prompts":
        scores = {task: -torch.cdist(query, part.common.points).amin(1) for task, part in own.items()}
    else:
        covariance = sum(part.scatter for part in own.values()) / sum(part.count for part in own.values())
        covariance += torch.eye(32) * (0.01 * covariance.diagonal().mean() + 1e-6)
        scores = {
            task: torch.stack(
                [
                    torch.distributions.MultivariateNormal(mean.double(), covariance.double()).log_prob(query.double())
                    for mean in part.plain_means
                ]
            ).amax(0)
            for task, part in own.items()
        }
    return ["ab"[int(scores["b"][row] > scores["a"][row])] for row in range(len(pixels))]


@pytest.mark.parametrize("name", ["dualprompt", "s-prompts", "hide-prompt"])
@torch.no_grad()
def test_each_image_is_answered_by_the_nearest_task_whatever_stands_beside_it(name):
    host = made(name)
    for routine in host.routines.values():
        routine.calibrate(context(host, ("a", "b")))
    pixels = torch.cat([images(4, ord("a")), images(4, ord("b")), images(4, 9)])
    tasks = nearest_by_hand(host, pixels)
    assert set(tasks) == {"a", "b"}
    expected = torch.cat([host.head_of("a")(host(pixels[row : row + 1], task)) for row, task in enumerate(tasks)])
    close(host.predict(pixels, "a"), expected)
    close(host.predict(pixels.flip(0), "b"), expected.flip(0))
    close(torch.cat([host.predict(row[None], "a") for row in pixels]), expected)


@torch.no_grad()
def test_only_tasks_of_the_same_head_can_answer():
    host = made("dualprompt", ("a", "b", "other"))
    host.add_head("other", Rows())
    host.bind_head("other", "other")
    first = {task: next(iter(parts_of(host, task).values())) for task in host.tasks}
    first["other"].common.key.copy_(by_hand(images())[0].mean(0))
    before = host.predict(images(), "a")
    first["other"].keys.fill_(7.0)
    assert torch.equal(host.predict(images(), "a"), before)


# --- S-Prompts


def test_s_prompts_carries_the_tasks_tokens_and_reads_the_class_token():
    host, pixels = made("s-prompts"), images()
    (part,) = parts_of(host, "a").values()
    close(host(pixels, "a").pooled, by_hand(pixels, part.tokens.expand(5, -1, -1))[0])


def test_k_means_finds_clusters_and_repeats_them_where_points_are_few():
    points = torch.tensor([[0.0, 0.0], [0.0, 2.0], [9.0, 9.0], [9.0, 7.0]])
    found = s_prompts.centroids(points, 2, seed=0)
    close(found[found[:, 0].argsort()], torch.tensor([[0.0, 1.0], [9.0, 8.0]]))
    few = s_prompts.centroids(points[:2], 3, seed=0)
    assert few.shape == (3, 2) and len(few.unique(dim=0)) == 2


# --- CODA-Prompt


def test_coda_prompt_weighs_components_by_attended_cosines():
    host, pixels = made("coda-prompt"), images()
    query, prefixes = by_hand(pixels)[0], []
    for part in parts_of(host, "shared").values():
        cosines = [F.cosine_similarity(query * part.attentions[m], part.keys[m][None]) for m in range(6)]
        prompt = sum(cosines[m][:, None, None] * part.prompts[m] for m in range(6))
        prefixes.append((prompt[:, :2], prompt[:, 2:]))
    close(host(pixels, "a").pooled, by_hand(pixels, prefixes=prefixes)[0])


def test_coda_prompt_gives_each_stage_its_components_and_leaves_the_others():
    host = made("coda-prompt")
    routine, part = host.routines["coda-prompt"], parts_of(host, "shared")["blocks.1.attn"]
    routine.begin_stage(context(host, ("a",), ("a",), stage=0, stages=3))
    assert part.common.met.tolist() == part.common.current.tolist() == [True, True, False, False, False, False]
    routine.begin_stage(context(host, ("b",), stage=1, stages=3))
    assert part.common.met.sum() == 4 and part.common.current.nonzero().flatten().tolist() == [2, 3]
    for rows in part.held():
        new = rows.flatten(1)[:4]
        close((new @ new.T)[2:], torch.eye(4)[2:])  # among themselves, and to those of the first stage
    with torch.no_grad():
        part.keys[4:] = 100.0  # not met
        before = host(images(), "b").pooled
        part.keys[4:] = -3.0
    assert torch.equal(host(images(), "b").pooled, before)
    here = context(host, ("b",), stage=1, stages=3)
    kept = {name: p.detach().clone() for name, p in part.named_parameters()}
    routine.begin_update(here)
    optimizer = torch.optim.AdamW(list(host.parts.parameters()), 0.1, weight_decay=0.5)
    host(images(), "b").pooled.sum().backward()
    assert all(not p.grad[[0, 1, 4, 5]].any() and p.grad[[2, 3]].any() for p in part.parameters())
    optimizer.step()
    routine.after_step(here)
    for name, parameter in part.named_parameters():
        assert torch.equal(parameter[[0, 1, 4, 5]], kept[name][[0, 1, 4, 5]])
        assert not torch.equal(parameter[[2, 3]], kept[name][[2, 3]])


def test_coda_prompt_holds_its_components_apart():
    host = made("coda-prompt", ortho=0.1)
    penalty = host.routines["coda-prompt"].penalty(context(host, ("a",)))
    rows = [t.flatten(1) for p in parts_of(host, "shared").values() for t in (p.keys, p.attentions, p.prompts)]
    close(penalty, 0.1 * sum((b @ b.T - torch.eye(6)).square().mean() for b in rows))
    host.routines["coda-prompt"].begin_stage(context(host, ("a",), stages=1))
    assert host.routines["coda-prompt"].penalty(context(host, ("a",))).detach() < 1e-10


def test_more_rows_than_dimensions_are_of_length_one():
    rows = torch.randn(6, 4)
    first = rows[:2].clone()
    orthonormalise(rows, 2, 6)
    assert torch.equal(rows[:2], first)
    close(rows[2:].norm(dim=1), torch.ones(4))


@pytest.mark.parametrize(("stages", "match"), [(None, "nobody knows how many"), (7, "there are 7")])
def test_coda_prompt_must_know_of_no_more_stages_than_components(stages, match):
    host = made("coda-prompt")
    with pytest.raises(UsageError, match=match):
        host.routines["coda-prompt"].begin_stage(context(host, ("a",), stages=stages))


# --- HiDe-Prompt


def test_hide_prompt_adds_a_share_of_earlier_prompts():
    host, pixels = made("hide-prompt", momentum=0.25), images()
    host.routines["hide-prompt"].begin_stage(context(host, ("b",)))
    prefixes = []
    for old, new in zip(parts_of(host, "a").values(), parts_of(host, "b").values(), strict=True):
        pair = 0.25 * old.keys + 0.75 * new.keys, 0.25 * old.values + 0.75 * new.values
        prefixes.append(tuple(tensor.expand(5, -1, -1) for tensor in pair))
    close(host(pixels, "b").pooled, by_hand(pixels, prefixes=prefixes)[0])


def test_hide_prompt_contrasts_with_earlier_means_by_the_equation():
    features, means = torch.randn(4, 6), torch.randn(3, 6)
    cos = lambda x, y: float(F.cosine_similarity(x, y, dim=0))  # noqa: E731
    expected = 0.0
    for h in features:
        old = sum(torch.tensor(cos(h, m) / 0.8).exp() for m in means)
        own = sum(torch.tensor(cos(h, x) / 0.8).exp() for x in features)
        expected += float((old / (old + own)).log()) / 4
    assert float(hide_prompt.contrast(features, means, 0.8)) == pytest.approx(expected, rel=1e-4)


def test_hide_prompt_describes_classes_and_aligns_the_head_on_them():
    host = made("hide-prompt", align_epochs=20, align_rate=0.1, align_samples=64)
    routine = host.routines["hide-prompt"]
    for stage, task in enumerate("ab"):
        here = context(host, (task,), "ab"[: stage + 1], stage=stage)
        routine.calibrate(here)
        routine.begin_stage(here)
        here.batch = (batch(host, task),)
        assert (routine.penalty(here) is None) == (task == "a")
        before = host.head_of(task).weight.detach().clone()
        routine.end_stage(here)
        assert torch.equal(host.head_of(task).weight, before) == (task == "a")
    described = parts_of(host, "b")["blocks.0.attn"]
    assert described.rows.tolist() == [2, 3, 4]
    own = batch(host, "b", 8, seed=ord("b"))
    third = own.features.pooled[[0, 3, 6]]
    close(described.means[0], third.mean(0))
    close(described.covariances[0], torch.cov(third.T, correction=0))
    both = torch.cat([parts_of(host, task)["blocks.0.attn"].means for task in "ab"])
    assert host.head_of("a")(Features(both, ())).argmax(1).tolist() == [0, 1, 2, 3, 4]
    assert all(parameter.grad is None for parameter in host.head_of("a").parameters())


def test_draws_follow_the_mean_and_covariance_of_a_class():
    part = hide_prompt.DescribedPrefix(3, 1, 0.0, 3)
    part.take_plain(torch.randn(4, 3), torch.zeros(4, dtype=torch.long))
    part.take_prompted(torch.randn(4, 3) * torch.tensor([1.0, 5.0, 0.1]) + 2, torch.zeros(4, dtype=torch.long))
    drawn = hide_prompt.draws(part, 20_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(0), part.means[0], rtol=0.05, atol=0.1)
    torch.testing.assert_close(torch.cov(drawn.T), part.covariances[0], rtol=0.1, atol=0.1)


# --- runs and the kit


def tensors(folder) -> dict[str, Tensor]:
    files = sorted((folder / "adapter").glob("*.safetensors"))
    return {f"{file.name} {name}": tensor for file in files for name, tensor in load_file(file).items()}


@pytest.fixture
def toys(installed_plugins, monkeypatch) -> None:
    """The toy's targets say what those of ``cls`` say, and may train any method."""
    training_toy.register()
    monkeypatch.setattr("mtpeft.files.sync", lambda path: None)
    plain = training_toy.Jitter.__call__

    def told(self, sample):
        pixels, target = plain(self, sample)
        return pixels, target | {"label": torch.tensor(sample.target["label"]), "classes": self.classes}

    monkeypatch.setattr(training_toy.Jitter, "__call__", told)
    anything = replace(hide_prompt.HidePrompt.declares, accepts=())
    monkeypatch.setattr(hide_prompt.HidePrompt, "declares", anything)


@pytest.mark.parametrize("name", SMALL)
def test_a_class_incremental_run_resumes_to_the_bit(tmp_path, name, toys):
    settings = [f"methods.{name}.{key}={value}" for key, value in SMALL[name].items()]
    settings += ["tasks.a.group=g", "tasks.b.group=g", "tasks.a.names=['red','green']", "tasks.b.names=['blue']"]
    settings += ["tasks.b.degenerate=allow", "output.save_every=1"]
    configs = [
        training_toy.config(tmp_path / folder, *settings, schedule="sequential", method=name)
        for folder in ("whole", "cut")
    ]
    Session.start(configs[0]).train()
    session = Session.start(configs[1])
    batch, left = session.loop.batch, iter(range(8, -1, -1))

    def pressed(event):
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGINT)
        batch(event)

    session.loop.batch = pressed
    with pytest.raises(KeyboardInterrupt):
        session.train()
    assert session.loop.at.stage == 1 and session.loop.at.open
    Session.resume(configs[1]).train()
    whole, cut = tensors(tmp_path / "whole"), tensors(tmp_path / "cut")
    assert whole.keys() == cut.keys() and all(torch.equal(whole[key], cut[key]) for key in whole)


@pytest.mark.parametrize("name", SMALL)
def test_conformance(name):
    scope = resolve("methods", name)().scope
    failures = [check.failure() for check in method_checks(name, ["vit"], [scope], slow=False, settings=SMALL[name])]
    assert [failure for failure in failures if failure] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["l2p", "coda-prompt"])
def test_a_query_and_the_prompts_it_chooses_compile_into_one_graph(name):
    routing.compiles(Case(*make_method(name, SMALL[name]), "vit"))
