"""The stock for method authors: each of its parts in a stranger's method, and each of its functions by closed form."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mtpeft.api import (
    Context,
    Declarations,
    InputMoments,
    LowRankUpdate,
    Method,
    NotApplicable,
    OutputPart,
    ParallelBottleneck,
    Part,
    PrefixKeysValues,
    PromptTokens,
    Replacement,
    SequentialBottleneck,
    Site,
    TokenLayout,
    UsageError,
    factors_from_weight,
    fill_down,
    first_batches,
    over_grid,
    principal_directions,
    recording,
    refuse_convolution,
    refuse_reordered,
    refuse_reshaped,
    summed_gradients,
    window_of,
)
from mtpeft.peft.host import Host
from mtpeft.testing import parametrize_with_checks, zoo


@dataclass
class LowRanks(Method):
    """LoRA from a weight's own directions."""

    declares = Declarations(category="addition", mergeable=True)
    at: str = "attn.q attn.v | conv"

    def part(self, site: Site) -> Part:
        return LowRankUpdate(site, 2, 0.5, init="pissa")


@dataclass
class Bottlenecks(Method):
    """One bottleneck behind attention, one beside the MLP."""

    declares = Declarations(category="addition")

    at: str = "attn mlp"

    def part(self, site: Site) -> OutputPart:
        if "mlp" in site.tags:
            return ParallelBottleneck(site.width, 4, scale=0.5, dropout=0.0, norm=True)
        return SequentialBottleneck(site.width, 4, "relu", dropout=0.0)


@dataclass
class Prompts(Method):
    """Tokens for the first block, keys and values for every attention."""

    declares = Declarations(category="addition", identity_at_init=False)
    at: str = "blocks.0.tokens attn"

    def part(self, site: Site) -> Part:
        return PromptTokens(site, 3, carry=True) if "tokens" in site.tags else PrefixKeysValues(site.width, 2)


@dataclass
class Gains(Method):
    """Trained copies of the norms."""

    declares = Declarations(category="addition", mergeable=True)
    at: str = "norm-parameter"

    def part(self, site: Site) -> Part:
        return Replacement(site)


@parametrize_with_checks([LowRanks, Bottlenecks, Prompts, Gains], ["vit"], slow=False)
def test_the_parts_in_stock_pass_the_kit_in_a_strangers_method(check):
    check()


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1), st.sampled_from(["pissa", "olora"]))
def test_factors_of_full_rank_give_the_weight_and_fewer_are_refused(out, into, seed, init):
    weight = torch.randn(out, into, generator=torch.Generator().manual_seed(seed))
    rank = min(out, into)
    a, b = factors_from_weight(init, weight, rank, 0.5)
    torch.testing.assert_close(0.5 * b @ a, weight, atol=1e-4, rtol=1e-4)
    with pytest.raises(UsageError, match=f"takes rank {rank + 1} from a weight of {out} x {into}"):
        factors_from_weight(init, weight, rank + 1, 0.5)


def test_pissa_is_the_best_approximation_of_its_rank():
    weight = torch.randn(7, 5)
    a, b = factors_from_weight("pissa", weight, 2, 3.0)
    values = torch.linalg.svdvals(weight)
    torch.testing.assert_close((weight - 3 * b @ a).norm(), values[2:].norm())


@given(st.integers(1, 5), st.integers(1, 8), st.integers(1, 8))
def test_orthogonal_factors_multiply_to_zero(rank, out, into):
    weight = torch.zeros(rank + out, rank + into)
    a, b = factors_from_weight("orthogonal", weight, rank, 1.0)
    assert (b @ a).abs().max() < 1e-5 and a.abs().max() > 0


def test_a_down_projection_has_the_spread_of_its_kind():
    torch.manual_seed(0)
    a = torch.empty(4, 10_000)
    fill_down(a, "gaussian")
    assert a.std().item() == pytest.approx(1 / 4, rel=0.05)
    fill_down(a)
    assert a.abs().max() <= 1 / 10_000**0.5 < 1.01 * a.abs().max()


def test_moments_of_inputs_give_their_principal_directions():
    torch.manual_seed(0)
    layer, moments = nn.Linear(3, 2), InputMoments(3)
    x = torch.randn(4, 50, 3) * torch.tensor([0.1, 5.0, 1.0]) + 7
    with recording([(layer, moments)]):
        layer(x[:2])
        layer(x[2:])
    layer(x)  # no longer recorded
    flat = x.flatten(0, 1)
    assert moments.count == 200
    torch.testing.assert_close(moments.gram, flat.t() @ flat, rtol=1e-4, atol=1e-2)
    first, second = principal_directions(moments.gram, moments.total, moments.count, 2)
    covariance = torch.cov(flat.t())
    assert first @ covariance @ first > second @ covariance @ second
    assert abs(first[1]) > 0.99 and abs(second[2]) > 0.99


def context(count: int) -> Context:
    images = {task: [torch.full((1,), 10.0 * number + i) for i in range(count)] for number, task in enumerate("ab")}
    turns = [(task, images[task][i], [{}]) for i in range(count) for task in "ab"]
    return Context(Host(zoo()["vit"](), [], ["a", "b"]), ("a", "b"), batches=lambda: iter(turns))


@pytest.mark.parametrize(("tasks", "expected"), [("a", [0, 1]), ("ab", [0, 10, 1, 11]), ("", [])])
def test_the_first_batches_are_those_of_the_tasks_asked_for(tasks, expected):
    assert [images.item() for _, images, _ in first_batches(context(5), tasks, 2)] == expected
    assert len(list(first_batches(context(1), tasks, 2))) == len(tasks)  # there are no more


def test_gradients_are_summed_over_batches_and_leave_the_weights_frozen():
    here = context(3)
    site = next(site for site in here.host.sites if site.name == "blocks.0.attn.k")
    frozen = site.model.original(site.rows.path, site.rows.name)

    def loss(task, images, targets):
        return images.sum() * frozen[site.rows.start : site.rows.stop].sum()

    (total,) = summed_gradients(here, [site], here.batches(), loss)
    assert torch.equal(total, torch.full(site.shape, 36.0))  # 0 + 10 + 1 + 11 + 2 + 12
    (squares,) = summed_gradients(here, [site], here.batches(), loss, torch.square)
    assert torch.equal(squares, torch.full(site.shape, 370.0))
    assert summed_gradients(here, [site], (), loss) is None
    assert not frozen.requires_grad and frozen.grad is None


@given(st.integers(0, 3), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**20 - 1))
def test_a_convolution_runs_over_the_grid_and_over_each_token_before_it_alone(before, height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    kernel = torch.randn(2, 2, 3, 3, generator=generator)
    x = torch.randn(2, before + height * width, 2, generator=generator)

    def convolve(image):
        return F.conv2d(image, kernel, padding=1)

    found = over_grid(convolve, x, TokenLayout(before, height, width))
    image = x[:, before:].unflatten(1, (height, width)).movedim(-1, 1)
    torch.testing.assert_close(found[:, before:], convolve(image).movedim(1, -1).flatten(1, 2))
    torch.testing.assert_close(found[:, :before], x[:, :before] @ kernel[:, :, 1, 1].t())
    torch.testing.assert_close(over_grid(convolve, image.movedim(1, -1), TokenLayout()), convolve(image).movedim(1, -1))


def sites(family: str) -> dict[str, Site]:
    return {site.name: site for site in Host(zoo()[family](), [], ["a"]).sites}


def test_what_cannot_be_right_is_refused_in_one_sentence():
    plain, stages, hiera = sites("vit"), sites("resnet"), sites("hiera")
    refuse_convolution(plain["blocks.0.mlp.fc1"], "it cuts matrices")
    refuse_reordered(plain["blocks.0"])
    refuse_reshaped(plain["blocks.0.mlp"])
    convolution = next(site for site in stages.values() if "conv" in site.tags)
    with pytest.raises(NotApplicable, match=rf"^it cuts matrices, and {convolution.name} is no linear layer"):
        refuse_convolution(convolution, "it cuts matrices")
    with pytest.raises(NotApplicable, match="keeps them in mask units"):
        refuse_reordered(next(iter(hiera.values())))
    reshaped = next(site for site in hiera.values() if "attention" in site.tags and not site.keeps_shape)
    with pytest.raises(NotApplicable, match="needs one shape before and behind"):
        refuse_reshaped(reshaped)


def test_windows_are_those_of_the_attention():
    assert window_of(sites("vit")["blocks.0.attn"]) is None
    assert window_of(sites("swin")["blocks.0.attn"]) == (4, 4)
