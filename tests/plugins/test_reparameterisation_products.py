"""Updates that are products of factors: LoHa, LoKr, KronA, KAdaptation, and the affine ones, Hydra and GLoRA."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.reparameterised import Reparameterised, close, detached

from mtpeft.errors import NotApplicable, UsageError
from mtpeft.plugins import resolve
from mtpeft.settings import build
from mtpeft_plugins.partial.lokr import near_square


def test_loha_is_the_entrywise_product_of_two_low_rank_matrices():
    model = Reparameterised("loha", at="attn.proj", rank=3, alpha=6)
    t = detached(model.part("attn.proj"))
    assert close(model.change("attn.proj"), 2 * (t["B1"] @ t["A1"]) * (t["B2"] @ t["A2"]))
    assert int(torch.linalg.matrix_rank(model.change("attn.proj"))) > 2 * 3


@given(st.integers(1, 4000))
def test_near_square_splits_a_number_as_evenly_as_it_divides(number):
    small, large = near_square(number)
    assert small * large == number
    assert small <= large
    assert not any(number % between == 0 for between in range(small + 1, math.isqrt(number) + 1))


def kronecker(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Entry ``(i k + p, j m + q)`` is ``a_ij b_pq``."""
    (rows, columns), (k, m) = a.shape, b.shape
    entries = [[a[i // k, j // m] * b[i % k, j % m] for j in range(columns * m)] for i in range(rows * k)]
    return torch.tensor(entries)


@pytest.mark.parametrize("both", [False, True])
def test_lokr_is_a_kronecker_product(both):
    model = Reparameterised("lokr", at="mlp.fc1", rank=1, alpha=2, both=both)
    t = detached(model.part("mlp.fc1"))
    first = t["W1.B"] @ t["W1.A"] if both else t["W1.B"]
    assert first.shape == (8, 4)
    assert close(model.change("mlp.fc1"), 2 * kronecker(first, t["W2.B"] @ t["W2.A"]))


def test_lokr_stores_a_factor_whole_where_the_rank_would_not_make_it_smaller():
    assert set(detached(Reparameterised("lokr", at="attn.proj", rank=4).part("attn.proj"))) == {"W1.B", "W2.B"}
    assert "W2.A" in detached(Reparameterised("lokr", at="attn.proj", rank=3).part("attn.proj"))


def test_krona_is_a_kronecker_product_of_a_wide_and_a_tall_factor():
    model = Reparameterised("krona", at="attn.proj", scale=0.5)
    t = detached(model.part("attn.proj"))
    assert (t["A"].shape, t["B"].shape) == ((4, 8), (8, 4))
    assert close(model.change("attn.proj"), 0.5 * kronecker(t["A"], t["B"]))


def test_kadaptation_sums_kronecker_products_of_shared_and_own_rank_one_matrices():
    model = Reparameterised("kadaptation", at="attn.q attn.v", terms=4, scale=0.5)
    frozen_bias, bias = model.bias("attn.qkv")
    for row, letter in ((0, "q"), (64, "v")):
        own, rule = detached(model.part(f"attn.{letter}")), detached(model.common[f"rule {letter} 4"])
        terms = zip(rule["a"], rule["e"], own["u"], own["v"], strict=True)
        expected = sum(kronecker(torch.outer(a, e), torch.outer(u, v)) for a, e, u, v in terms)
        assert close(model.change("attn.qkv")[row : row + 32], 0.5 * expected)
        shift = model.common["shift blocks.0.attn 32"].detach()
        assert close(bias[row : row + 32], frozen_bias[row : row + 32] + shift)
    assert model.change("attn.qkv")[32:64].abs().max() == 0


def test_kadaptation_shares_its_rules_across_layers():
    names = Reparameterised("kadaptation", at="attn.q attn.v").host.shared_parameters()
    assert {name for name in names if "rule" in name} == {
        f"kadaptation/common/_rule {letter} 32.{tensor}" for letter in "qv" for tensor in "ae"
    }


def test_hydra_adds_a_parallel_branch_and_one_behind_the_layer():
    model = Reparameterised("hydra", at="mlp.fc2", rank=3, scale=0.5)
    t = detached(model.part("mlp.fc2"))
    (frozen, folded), (frozen_bias, folded_bias) = model.weight("mlp.fc2"), model.bias("mlp.fc2")
    x = torch.randn(5, frozen.shape[1])
    y0 = x @ frozen.T + frozen_bias
    p, s = ({name.split(".")[1]: v for name, v in t.items() if name.startswith(which)} for which in ("par", "seq"))
    parallel = (x @ p["A"].T + p["a"]) @ p["B"].T + p["b"]
    sequential = (y0 @ s["A"].T + s["a"]) @ s["B"].T + s["b"]
    assert close(x @ folded.T + folded_bias, y0 + 0.5 * parallel + 0.5 * sequential)


@pytest.mark.parametrize("kind", ["lora", "vector", "scalar", "none"])
@pytest.mark.parametrize("prompt", ["lora", "vector", "none"])
def test_glora_scales_and_shifts_weight_and_bias(kind, prompt):
    shift = "vector" if kind == "lora" else kind
    kinds = {"weight_scale": kind, "weight_shift": kind, "bias_scale": shift, "bias_shift": shift}
    if kind == prompt == "none":
        with pytest.raises(UsageError, match="all five supports are none"):
            Reparameterised("glora", at="attn.proj", prompt=prompt, **kinds)
        return
    model = Reparameterised("glora", at="attn.proj", prompt=prompt, **kinds)
    part = model.part("attn.proj")
    a, b, c, d, e = (
        torch.zeros(()) if support is None else support().detach()
        for support in (part.A, part.B, part.C, part.D, part.E)
    )
    (weight, folded), (bias, folded_bias) = model.weight("attn.proj"), model.bias("attn.proj")
    assert close(folded, weight * (1 + a) + b)
    shifted = weight @ c.expand(32, 1)
    assert close(folded_bias[:, None], bias[:, None] * (1 + d) + e + shifted)


@pytest.mark.parametrize("at", ["norm1", "bias", "attn", "features"])
@pytest.mark.parametrize(
    "method",
    ["adalora", "adapterbias", "boft", "dora", "fourierft", "glora", "gps", "hra", "hydra", "kadaptation", "krona",
     "loha", "lokr", "lora", "lora-fa", "oft", "randlora", "snell", "vera"],
)  # fmt: skip
def test_a_site_without_a_weight_matrix_is_refused_by_name(method, at):
    with pytest.raises(NotApplicable, match="has no weight matrix that could be changed") as caught:
        Reparameterised(method, at=at)
    assert "choose linear layers or convolutions with at" in caught.value.hint


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("loha", {"rank": 0}, "rank = 0 does not fit"),
        ("lokr", {"rank": 0}, "rank = 0 does not fit"),
        ("krona", {"scale": 0.0}, "scale = 0.0 does not fit"),
        ("kadaptation", {"terms": 0}, "terms = 0 does not fit"),
        ("hydra", {"rank": 0}, "rank = 0 does not fit"),
        ("glora", {"rank": 0}, "rank = 0 does not fit"),
        ("oft", {"block": 1}, "block is 1"),
        ("boft", {"factors": 0}, "factors = 0 does not fit"),
        ("hra", {"rank": 3}, "rank is 3"),
        ("vera", {"start": 0.0}, "start is 0"),
        ("randlora", {"seed": -1}, "seed = -1 does not fit"),
        ("fourierft", {"coefficients": 0}, "coefficients = 0 does not fit"),
        ("fact-tt", {"rank": 0}, "rank = 0 does not fit"),
        ("fact-tk", {"scale": -1.0}, "scale = -1.0 does not fit"),
        ("efft", {"rank": 0}, "rank = 0 does not fit"),
        ("arc", {"rank": 0}, "rank = 0 does not fit"),
        ("adalora", {"target": 13}, "target is 13"),
        ("adalora", {"warmup": 0.5, "settle": 0.5}, "warmup is 0.5 and settle 0.5"),
        ("snell", {"sparsity": 1.0}, "sparsity = 1.0 does not fit"),
    ],
)
def test_settings_out_of_range_are_refused(method, settings, message):
    with pytest.raises(UsageError, match=message) as caught:
        build(resolve("methods", method), settings)
    assert caught.value.hint
