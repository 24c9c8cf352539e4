"""NOAH: the supernet and its subnets by hand, the search, what it leaves behind, and restarts in the middle."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from mtpeft import load
from mtpeft.api import Context, MtpeftError, NotApplicable, UsageError
from mtpeft.peft.host import Host
from mtpeft.plugins import resolve
from mtpeft.settings import build
from mtpeft.testing import zoo
from mtpeft_plugins.unified._subnets import Space, Subnet, evolve
from mtpeft_plugins.unified.noah import assign

SMALL = {"sizes": [1, 3], "generations": 1, "population": 4, "parents": 2}
# Released for KITTI, CIFAR-100 and SVHN, on ViT-B/16: prompts, ranks and widths of twelve blocks.
RELEASED = [
    ("1 5 10 1 10 5 1 1 1 5 5 5", "5 10 10 10 1 10 5 5 10 5 10 1", "5 1 10 10 1 10 1 1 5 10 5 5", 397888),
    ("10 5 10 1 5 1 10 1 10 5 1 10", "10 1 5 5 1 10 1 1 1 10 1 1", "5 10 10 10 5 1 1 1 10 10 10 1", 320330),
    ("10 5 5 10 5 5 5 5 5 5 5 5", "5 5 5 10 5 5 5 10 10 10 10 5", "5 5 5 5 5 10 5 10 5 5 5 5", 431686),
]


def attached(family: str = "vit", tasks=("a",), **settings) -> Host:
    """A host with NOAH on it whose parts have moved from where they start."""
    torch.manual_seed(0)
    host = Host(zoo()[family](), [("noah", resolve("methods", "noah")(**SMALL | settings))], tasks).eval()
    with torch.no_grad():
        for parameter in host.trainable(tasks).values():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return host


def placed(host: Host, *tasks: str) -> list[Any]:
    return host.parts_of(host.methods["noah"], tasks or host.tasks)


def space(host: Host) -> Space:
    return placed(host)[0].part.common.space


def sizes(host: Host, task: str = "a") -> dict[str, int]:
    return {p.site.name: p.part.size for p in placed(host, task)}


def images(host: Host, count: int = 3) -> Tensor:
    return torch.randn(count, 3, *host.image_size, generator=torch.Generator().manual_seed(5))


def context(host: Host, score=lambda task, samples: 0.0, **more) -> Context:
    given: dict[str, Any] = {"steps": 10} | more
    return Context(host, tuple(host.tasks), tuple(host.tasks), score=score, **given)


def by_hand(host: Host, batch: Tensor, subnet: Subnet) -> Tensor:
    """The pooled features of a subnet, written out on the plain model."""
    plain, parts = zoo()["vit"](), {p.site.name: p.part for p in placed(host, "a")}
    kinds = dict(zip(space(host).kinds, subnet, strict=True))
    x, before = plain._pos_embed(plain.patch_embed(batch)), 0
    for i, block in enumerate(plain.blocks):
        p, r, h = (kinds[kind][i] for kind in ("prompt", "lora", "adapter"))
        if p:
            own = parts[f"blocks.{i}.tokens"].tokens[:, :p].expand(len(batch), -1, -1)
            x, before = torch.cat([x[:, :1], own, x[:, 1 + before :]], 1), p
        qkv = block.attn.qkv.weight.clone()
        for start, letter in ((0, "q"), (64, "v")):
            part = parts[f"blocks.{i}.attn.{letter}"]
            qkv[start : start + 32] += part.B[:, :r] @ part.A[:r]
        y = torch.func.functional_call(block.attn, {"qkv.weight": qkv}, (block.norm1(x),)) + x
        z, part = block.mlp(block.norm2(y)), parts[f"blocks.{i}.mlp"]
        if h:
            hidden = F.linear(z, part.down[:h], part.down_bias[:h])
            z = z + F.linear(hidden * torch.sigmoid(1.702 * hidden), part.up[:, :h], part.up_bias)
        x = y + z
    return plain.norm(x)[:, 0]


SUBNETS = [((3, 1, 3), (1, 3, 1), (3, 3, 1)), ((3, 0, 0), (1, 0, 0), (3, 0, 0)), ((1, 3, 0), (3, 1, 0), (1, 1, 0))]


@pytest.mark.parametrize("subnet", SUBNETS)
def test_a_subnet_takes_leading_tokens_ranks_and_units(subnet):
    host = attached()
    assign(placed(host), space(host).named(subnet))
    batch, parameters = images(host), host.shared_parameters()
    expected = by_hand(host, batch, subnet)
    wanted = torch.autograd.grad(expected.square().sum(), list(parameters.values()), allow_unused=True)
    found = host(batch, "a").pooled
    gradients = torch.autograd.grad(found.square().sum(), list(parameters.values()), allow_unused=True)
    torch.testing.assert_close(found, expected)
    for name, mine, other in zip(parameters, gradients, wanted, strict=True):
        zero = torch.zeros_like(parameters[name])
        mine, other = (zero if g is None else g for g in (mine, other))
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("subnet", SUBNETS)
def test_cut_out_it_is_the_same_and_all_that_is_counted_and_saved(subnet, tmp_path):
    host = attached()
    named = space(host).named(subnet)
    assign(placed(host), named)
    before = host(images(host), "a").pooled
    for p in placed(host):
        p.part.cut(named[p.site.name])
    torch.testing.assert_close(host(images(host), "a").pooled, before)
    prompts, ranks, widths = subnet
    d = 32
    expected = d * sum(prompts) + 4 * d * sum(ranks) + sum(2 * d * h + h + d for h in widths if h)
    assert host.count().parts == space(host).cost(subnet) == expected
    host.save(tmp_path)
    assert (
        sum(t.numel() for n, t in load_file(tmp_path / "shared.safetensors").items() if "common" not in n) == expected
    )
    again = load(tmp_path, zoo()["vit"]()).eval()
    assert torch.equal(again(images(host), "a").pooled, host(images(host), "a").pooled)
    assert sizes(again) == sizes(host) and again.count().parts == expected


def test_a_supernet_can_be_loaded_where_it_was_cut(tmp_path):
    host = attached()
    host.save(tmp_path)
    whole = host(images(host), "a").pooled
    for p in placed(host):
        p.part.cut(0)
    assert host.count().parts == 0
    assert torch.equal(host(images(host), "a").pooled, Host(zoo()["vit"]()).eval()(images(host)).pooled)
    host.load(tmp_path)
    assert torch.equal(host(images(host), "a").pooled, whole)


@pytest.mark.parametrize(("model", "d", "blocks"), [("small", 384, 12), ("base", 768, 12), ("large", 1024, 24)])
def test_the_supernet_counts_its_closed_form(model, d, blocks):
    with torch.device("meta"):
        vit = timm.create_model(f"vit_{model}_patch16_224", pretrained=False, num_classes=0)
        host = Host(vit, [("noah", resolve("methods", "noah")())])
    assert host.count().parts == blocks * (10 * d + 4 * d * 10 + 2 * d * 10 + 10 + d)
    assert model != "base" or host.count().parts == 654456


@pytest.mark.parametrize(("prompts", "ranks", "widths", "expected"), RELEASED)
def test_released_subnets_count_their_closed_form(prompts, ranks, widths, expected):
    p, r, h = subnet = tuple(tuple(map(int, text.split())) for text in (prompts, ranks, widths))
    assert expected == 768 * (sum(p) + 4 * sum(r) + 2 * sum(h) + 12) + sum(h)
    with torch.device("meta"):
        vit = timm.create_model("vit_base_patch16_224", pretrained=False, num_classes=0)
        host = Host(vit, [("noah", resolve("methods", "noah")())])
        parts, common = (keyed["noah"]["shared"] for keyed in (host.parts.by_owner, host.parts.shared_modules))
        for site, size in common.space.named(subnet).items():
            parts[site].cut(size)
    assert host.count().parts == common.space.cost(subnet) == expected


def test_every_update_trains_a_subnet_drawn_for_it_and_evaluation_sees_the_whole():
    host, drawn = attached(tasks=("a", "b"), scope="task", sizes=[1, 2, 3]), []
    noah = host.routines["noah"]
    for step in (0, 1, 0):
        here = context(host, step=step)
        assert noah.begin_update(here) is False
        drawn.append(sizes(host))
        assert sizes(host, "b") == drawn[-1]  # one for all owners, so that a mixed batch takes one pass
        noah.after_step(here)
        assert set(sizes(host).values()) == {3}
    assert drawn[0] == drawn[2] != drawn[1]
    for change in ({"seed": 1}, {"stage": 1}):
        noah.begin_update(context(host, **change))
        assert sizes(host) != drawn[0]


def test_only_what_a_subnet_holds_gets_a_gradient():
    host = attached()
    host.routines["noah"].begin_update(context(host, step=3))
    host.train()(images(host), "a").pooled.square().sum().backward()
    for p in placed(host):
        for name, dimension in p.part.along.items():
            gradient = getattr(p.part, name).grad
            rows = torch.zeros(3, 1) if gradient is None else gradient.movedim(dimension, 0).reshape(3, -1)
            assert rows.any(1).tolist() == [index < p.part.size for index in range(3)], (p.site.name, name)


def test_checkpoints_recompute_the_subnet_of_the_update():
    host, found = attached(), []
    host.train()
    host.routines["noah"].begin_update(context(host, step=2))
    for enable in (False, True):
        host.checkpointing(enable)
        host.zero_grad(set_to_none=True)
        host(images(host), "a").pooled.square().sum().backward()
        found.append([p.grad for p in host.shared_parameters().values()])
    for plain, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(recomputed, plain)


def additive(subnet: Subnet) -> float:
    """Likes small prompts, large ranks and adapters of width 3."""
    prompts, ranks, widths = subnet
    return sum(ranks) - sum(prompts) - sum(abs(width - 3) for width in widths)


def test_evolution_finds_what_chance_does_not():
    where = space(attached(sizes=[1, 3, 5, 10]))
    chance = evolve(where, additive, 10**9, Random(0), generations=0, population=420, parents=10)
    found = evolve(where, additive, 10**9, Random(0), generations=20, population=20, parents=6)
    assert additive(found) > additive(chance)
    assert found == ((1, 0, 0), (10, 10, 10), (3, 3, 3))


def test_of_equal_subnets_the_largest_within_the_budget_wins():
    where, met = space(attached()), []
    best = evolve(where, lambda subnet: met.append(subnet) or 1.0, 2000, Random(3), 2, 10, 3)
    assert where.cost(best) == max(map(where.cost, met)) <= 2000 < where.cost(where.whole)
    assert evolve(where, lambda subnet: 1.0, where.cost(where.smallest), Random(3), 2, 10, 3) == where.smallest


WHERE = space(attached(sizes=[1, 2, 5]))


@given(st.integers(0, 2**32), st.integers(WHERE.cost(WHERE.smallest), WHERE.cost(WHERE.whole)))
def test_every_subnet_is_within_the_budget_and_the_space(seed, budget):
    met: list[Subnet] = []
    best = evolve(
        WHERE, lambda subnet: met.append(subnet) or Random(repr(subnet)).random(), budget, Random(seed), 3, 6, 2
    )
    assert len(met) == len(set(met)) and best == max(met, key=lambda subnet: Random(repr(subnet)).random())
    for subnet in met:
        assert WHERE.cost(subnet) <= budget
        for column in subnet:
            assert set(column) <= {0, 1, 2, 5} and sum(size > 0 for size in column) in (1, 2, 3)
            assert all(size or not after for size, after in pairwise(column))  # zeros stand behind


@pytest.mark.parametrize(("blocks", "depths"), [(12, [3, 6, 9, 12]), (3, [1, 2, 3, 3]), (1, [1, 1, 1, 1])])
def test_depths_are_quarters(blocks, depths):
    assert WHERE.depths(blocks) == depths


def narrow(host: Host):
    """A score that is best where task b's adapters are wide and all others narrow; remembers what was asked."""
    asked = []

    def score(task: str, samples: int) -> float:
        asked.append((task, samples, host.training))
        widths = [size for name, size in sizes(host, task).items() if name.endswith("mlp")]
        return float(sum(widths) if task == "b" else -sum(widths))

    return score, asked


def test_each_owner_is_searched_once_by_its_own_tasks():
    host = attached(tasks=("a", "b"), scope="task", generations=4, population=20, samples=7)
    noah, (score, asked) = host.routines["noah"], narrow(host)
    assert noah.begin_update(context(host, score, step=4)) is False
    noah.after_step(context(host, score, step=4))
    assert noah.begin_update(context(host, score, step=5)) is True
    widths = {task: [n for name, n in sizes(host, task).items() if name.endswith("mlp")] for task in "ab"}
    assert widths == {"a": [1, 0, 0], "b": [3, 3, 3]}
    assert {(task, samples) for task, samples, _ in asked} == {("a", 7), ("b", 7)}
    number, kept = len(asked), sizes(host, "b")
    assert noah.begin_update(context(host, score, step=6)) is False
    noah.end_stage(context(host, score, stage=1))
    assert len(asked) == number and sizes(host, "b") == kept


def test_owners_with_different_subnets_share_a_batch():
    host = attached(tasks=("a", "b"), scope="task", generations=4, population=20)
    host.routines["noah"].end_stage(context(host, narrow(host)[0]))
    assert sizes(host, "a") != sizes(host, "b")
    host, names, found = host.double(), ["b", "a", "b"], []
    batch = images(host).double()
    for mixed in (True, False):
        host.zero_grad(set_to_none=True)
        outputs = (
            host(batch, names).pooled
            if mixed
            else torch.cat([host(batch[i : i + 1], name).pooled for i, name in enumerate(names)])
        )
        outputs.square().sum().backward()
        found.append((outputs.detach(), [p.grad for p in host.trainable(["a", "b"]).values()]))
    torch.testing.assert_close(*found)


def test_several_tasks_count_by_their_change_relative_to_the_supernet():
    host = attached(tasks=("a", "b", "c", "d"))
    values = {"a": [50.0, 60.0], "b": [0.0, 0.5], "c": [None, 3.0], "d": [-2.0, -1.0]}
    here = context(host, lambda task, samples: values[task].pop(0))
    gain = host.routines["noah"].scores(here, placed(host), ["a", "b", "c", "d"])
    assert gain(space(host).smallest) == pytest.approx(0.2 + 0.5 + 0.5)


def test_a_frozen_owner_is_left_as_it_is():
    host = attached()
    host.freeze("shared")
    host.routines["noah"].end_stage(context(host, step=9))
    assert host.routines["noah"].begin_update(context(host, step=9)) is False
    assert set(sizes(host).values()) == {3}


def test_without_a_score_it_says_so():
    host = attached()
    with pytest.raises(MtpeftError, match="its context has none") as error:
        host.routines["noah"].end_stage(Context(host, ("a",), ("a",)))
    assert "give Context a score" in error.value.hint


def test_prompts_are_left_out_where_positions_are_relative():
    assert set(space(attached("beit")).kinds) == set(space(attached("swin")).kinds) == {"lora", "adapter"}
    assert set(space(attached("eva02")).kinds) == {"prompt", "lora", "adapter"}


def test_it_refuses_what_leaves_no_choice():
    with pytest.raises(NotApplicable, match="these sites of ConvNeXt take only adapters") as error:
        attached("convnext")
    assert "choose others with at" in error.value.hint
    assert set(space(attached("convnext", at="mlp.fc1 mlp")).kinds) == {"lora", "adapter"}
    with pytest.raises(
        UsageError, match="budget is 100, and the smallest subnet of VisionTransformer has 257"
    ) as error:
        attached(budget=100)
    assert "raise the budget" in error.value.hint
    with pytest.raises(NotApplicable, match="noah does not merge"):
        attached().merged_state("a")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sizes": []}, "sizes is"),
        ({"sizes": [0, 5]}, "sizes is"),
        ({"budget": 0}, "budget = 0 does not fit"),
        ({"supernet": 1.5}, "supernet = 1.5 does not fit"),
        ({"generations": -1}, "generations = -1 does not fit"),
        ({"population": 1}, "population is 1"),
        ({"parents": 0}, "parents = 0 does not fit"),
        ({"samples": 0}, "samples = 0 does not fit"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        build(resolve("methods", "noah"), settings)
