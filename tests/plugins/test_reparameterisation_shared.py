"""Factors that layers share, trained (FacT, EFFT, ARC) or frozen (VeRA, RandLoRA, FourierFT); and SNELL's kernel."""

from __future__ import annotations

import math

import pytest
import torch
from support.reparameterised import Reparameterised, close, detached

from mtpeft.api import fixed_uniform
from mtpeft.errors import NotApplicable

SLICES = {"attn.q": 1, "attn.k": 1, "attn.v": 1, "attn.proj": 1, "mlp.fc1": 4, "mlp.fc2": 4}


def slices(model: Reparameterised) -> dict[str, list[torch.Tensor]]:
    """Each weight's change in row-vector form, cut into 32 x 32 slices."""
    qkv = model.change("attn.qkv").T
    found = {f"attn.{letter}": [qkv[:, 32 * i : 32 * i + 32]] for i, letter in enumerate("qkv")}
    found["attn.proj"] = [model.change("attn.proj").T]
    found["mlp.fc1"] = list(model.change("mlp.fc1").T.split(32, 1))
    found["mlp.fc2"] = list(model.change("mlp.fc2").T.split(32, 0))
    return found


def test_every_slice_of_fact_tt_is_u_sigma_v():
    model = Reparameterised("fact-tt", rank=3, scale=0.5)
    u, v = (model.common["32"].get_parameter(name).detach() for name in "UV")
    found = slices(model)
    assert {name: len(pieces) for name, pieces in found.items()} == SLICES
    for name, pieces in found.items():
        for piece, core in zip(pieces, model.part(name).Sigma.detach(), strict=True):
            assert close(piece, 0.5 * u @ core @ v.T)


def test_every_slice_of_fact_tk_mixes_one_core():
    model = Reparameterised("fact-tk", rank=3, scale=0.5)
    ends = detached(model.common["32"])
    for name, pieces in slices(model).items():
        for piece, mixture in zip(pieces, model.part(name).P.detach(), strict=True):
            core = sum(p * c for p, c in zip(mixture, ends["C"], strict=True))
            assert close(piece, 0.5 * ends["U"] @ core @ ends["V"].T)


def test_fact_cuts_the_last_slice_where_the_hidden_layer_is_no_multiple():
    part = Reparameterised("fact-tt", family="eva02-base", rank=3).part("mlp.fc2")
    hidden = part.inputs
    assert hidden % part.out
    a, b, _ = part.factors()
    assert (a.shape, b.shape) == ((3, hidden), (part.out, 3))
    assert len(part.Sigma) == math.ceil(hidden / part.out)


@pytest.mark.parametrize("method", ["fact-tt", "fact-tk", "efft", "arc"])
def test_a_network_of_convolutions_is_refused_by_name(method):
    with pytest.raises(NotApplicable, match="is no linear layer") as caught:
        Reparameterised(method, family="resnet")
    assert "lora" in caught.value.hint


def test_efft_frames_attention_and_mlp_apart_with_cores_shared_by_layers():
    model = Reparameterised("efft", rank=3, scale=0.5)
    attention, mlp = detached(model.common["attn 32 32"]), detached(model.common["mlp 32 128"])
    for i, letter in enumerate("qkv"):
        core = model.common["attn 32 32"].cores[f"attn.{letter}"].detach()
        change = model.change("attn.qkv")[32 * i : 32 * i + 32]
        assert close(change, 0.5 * attention["V"] @ core @ attention["U"].T)
    cores = model.common["mlp 32 128"].cores
    assert close(model.change("mlp.fc1"), 0.5 * mlp["V"] @ cores["mlp.fc1"].detach() @ mlp["U"].T)
    assert close(model.change("mlp.fc2"), 0.5 * mlp["U"] @ cores["mlp.fc2"].detach() @ mlp["V"].T)
    last = model.host.merged_state("task")["blocks.2.mlp.fc1.weight"] - model.plain["blocks.2.mlp.fc1.weight"]
    assert close(last, model.change("mlp.fc1"))
    assert not any(list(part.parameters()) for part in model.parts.values())


@pytest.mark.parametrize("at", ["attn.q attn.k attn.v mlp.fc1", "attn.qkv attn.proj mlp.fc1 mlp.fc2"])
def test_arc_recomposes_each_input_by_its_own_numbers(at):
    model, seen = Reparameterised("arc", rank=5, at=at), []
    for place in ("attn", "attn.proj", "mlp.fc1", "mlp.fc2"):
        if f"blocks.0.{place}" not in model.common:
            continue
        seen.append(place)
        module = "attn.qkv" if place == "attn" else place
        (weight, folded), (bias, folded_bias) = model.weight(module), model.bias(module)
        basis = f"{place.rpartition('.')[2]} {weight.shape[1]}"
        u, own = model.common[basis].detach(), detached(model.common[f"blocks.0.{place}"])
        x = torch.randn(7, weight.shape[1])
        changed = x + x @ u @ torch.diag(own["c"]) @ u.T + own["b"]
        assert close(x @ folded.T + folded_bias, changed @ weight.T + bias)
    assert len(seen) == (4 if "proj" in at else 2)


def test_vera_scales_rows_of_frozen_matrices():
    model = Reparameterised("vera", at="attn.proj mlp.fc2", rank=6)
    for module, width in (("attn.proj", 32), ("mlp.fc2", 128)):
        own = detached(model.part(module))
        a, b = model.common.A[:, :width], model.common.B[:32]
        assert close(model.change(module), torch.diag(own["up"]) @ b @ torch.diag(own["down"]) @ a)
    assert model.common.A.abs().max() <= math.sqrt(6 / 128)


@pytest.mark.parametrize("module", ["attn.proj", "mlp.fc1", "mlp.fc2"])
def test_randlora_sums_scaled_frozen_matrices_to_full_rank(module):
    model = Reparameterised("randlora", at="attn.proj mlp.fc1 mlp.fc2", rank=5, alpha=10)
    own = detached(model.part(module))
    a, b = model.common.A, model.common.B[:, : max(model.change(module).shape)]
    terms = zip(b, own["l"], own["g"], strict=True)
    expected = 2 * sum(basis @ torch.diag(left) @ a @ torch.diag(right) for basis, left, right in terms)
    change = model.change(module)
    assert len(own["l"]) == math.ceil(32 / 5)
    assert close(change.T if module == "mlp.fc2" else change, expected)
    assert int(torch.linalg.matrix_rank(change)) == 32


def test_fourierft_is_the_real_part_of_a_sparse_spectrum():
    model = Reparameterised("fourierft", at="mlp.fc1", coefficients=9, scale=30.0)
    own, change = detached(model.part("mlp.fc1"))["coefficients"], torch.zeros(128, 32)
    j, k = torch.arange(128)[:, None], torch.arange(32)[None]
    for place, value in zip(model.common.get_buffer("of_4096").tolist(), own, strict=True):
        row, column = divmod(place, 32)
        change += value * torch.cos(2 * math.pi * (row * j / 128 + column * k / 32)) / (128 * 32)
    assert close(model.change("mlp.fc1"), 30 * change)
    assert len(set(model.common.get_buffer("of_4096").tolist())) == 9


def test_snell_keeps_the_largest_entries_of_a_kernel():
    model = Reparameterised("snell", at="attn.proj", rank=4, sparsity=0.75, scale=0.5)
    own = detached(model.part("attn.proj"))
    near, far = ((p[:, None] - q[None]).norm(dim=-1) for p, q in zip(own["P"], own["Q"], strict=True))
    kernel = 0.5 * (near - far)
    kept = kernel.abs() > kernel.abs().flatten().sort().values[int(0.75 * 1024) - 1]
    assert int(kept.sum()) == 256
    assert close(model.change("attn.proj"), kernel * kernel.abs() * kept)


def test_fixed_numbers_never_change():
    """Files hold no bases, so these numbers are part of the format: the published first outputs of SplitMix64."""
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC, 0x1B39896A51A8749B]
    assert torch.equal(fixed_uniform(0, 5), torch.tensor([(number >> 40) / 2**24 for number in published]))


def test_fixed_numbers_are_uniform_and_differ_by_seed():
    drawn = fixed_uniform(7, 400, 50)
    assert abs(float(drawn.mean()) - 0.5) < 0.01
    assert abs(float(drawn.var()) - 1 / 12) < 0.002
    assert float(drawn.min()) >= 0
    assert float(drawn.max()) < 1
    assert not torch.equal(fixed_uniform(7, 20), fixed_uniform(8, 20))
    assert abs(float(torch.corrcoef(drawn[:, :2].T)[0, 1])) < 0.15
