"""Sites: one vocabulary over families, found by one pass; patterns over it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtpeft.errors import UsageError
from mtpeft.peft.find_sites import find_sites
from mtpeft.peft.pattern import select
from mtpeft.testing.zoo import zoo

TRANSFORMERS = ["vit", "vit-reg4", "siglip", "deit", "beit", "eva02", "eva02-base", "dinov3", "swin", "swinv2"]


@pytest.fixture(scope="module")
def found():
    return {family: find_sites(build()) for family, build in zoo().items()}


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_every_block_of_a_transformer_has_the_common_names(found, family):
    names = {site.name for site in found[family]}
    for block in range(len(found[family][0].model.blocks)):
        for name in ("attn", "attn.q", "attn.k", "attn.v", "attn.proj", "mlp", "mlp.fc2", "norm1", "norm2"):
            assert f"blocks.{block}.{name}" in names


@pytest.mark.parametrize("family", list(zoo()))
def test_names_are_unique_and_every_parameter_is_a_site(found, family):
    names = [site.name for site in found[family]]
    assert len(set(names)) == len(names)
    parameters = [s for s in found[family] if "parameter" in s.tags]
    assert sum(s.weight.numel() for s in parameters) == sum(p.numel() for p in zoo()[family]().parameters())


@pytest.mark.parametrize("family", ["beit", "eva02", "swinv2"])
def test_a_weight_that_is_read_without_a_call_is_marked(found, family):
    sites = {site.name: site for site in found[family]}
    assert sites["blocks.0.attn.q"].bypassed and sites["blocks.0.attn.qkv"].bypassed
    assert not sites["blocks.0.attn.proj"].bypassed
    assert [ref.name for ref in sites["blocks.0.attn.qkv"].bias] == ["q_bias", "k_bias", "v_bias"]
    assert [ref.name for ref in sites["blocks.0.attn.v"].bias] == ["v_bias"]


@pytest.mark.parametrize("family", ["vit", "swin", "vit-reg4"])
def test_a_called_weight_is_not_marked(found, family):
    assert not any(site.bypassed for site in found[family] if site.tensor is not None and "parameter" not in site.tags)


def test_q_k_and_v_are_the_rows_of_the_fused_projection(found):
    sites = {site.name: site for site in found["vit"]}
    rows = [sites[f"blocks.1.attn.{letter}"].weight for letter in "qkv"]
    assert torch.equal(torch.cat(rows), sites["blocks.1.attn.qkv"].weight)


@pytest.mark.parametrize("family", ["convnext", "resnet", "mobilenet", "efficientnet"])
def test_convolutions_lie_channels_first(found, family):
    model = found[family][0].model
    convolutions = [s for s in found[family] if s.tags & {"conv", "grouped-conv"}]
    assert convolutions and all(s.path in model.channels_first for s in convolutions)


def test_a_convnext_mlp_lies_channels_last_inside_a_block_that_does_not(found):
    sites = {site.name: site for site in found["convnext"]}
    first = sites["blocks.0"].model.channels_first
    assert sites["blocks.0"].path in first and sites["blocks.0.mlp"].path not in first


@pytest.mark.parametrize(
    ("family", "kind"), [("vit", "none"), ("dinov3", "rotary"), ("beit", "relative"), ("swin", "relative")]
)
def test_what_mixes_positions_is_known(found, family, kind):
    assert found[family][0].model.positions == kind


def names(sites):
    return [site.name for site in sites]


def test_the_first_alternative_that_matches_wins(found):
    assert names(select(found["vit"], "attn.q | mlp.fc1")) == [f"blocks.{i}.attn.q" for i in range(3)]
    assert all(name.endswith("mlp.fc1") for name in names(select(found["convnext"], "attn.q | mlp.fc1")))
    assert all("conv" in s.tags for s in select(found["resnet"], "attn.q | mlp.fc1 | conv"))


def test_terms_are_names_tails_globs_and_tags(found):
    sites = found["vit"]
    assert names(select(sites, "blocks.1.mlp")) == ["blocks.1.mlp"]
    assert names(select(sites, "blocks.[02].norm?")) == [f"blocks.{i}.norm{j}" for i in (0, 2) for j in (1, 2)]
    assert names(select(sites, "patch_embed")) == ["patch_embed"]
    assert all("bias" in site.tags for site in select(sites, "bias"))


def test_a_tail_matches_inside_blocks_only(found):
    assert all(site.block is not None for site in select(found["siglip"], "mlp.fc1"))


def test_no_match_lists_what_there_is(found):
    with pytest.raises(UsageError, match=r'"attn\.x"') as error:
        select(found["vit"], "attn.x")
    assert "attn.q" in error.value.hint and "conv" in error.value.hint


@given(st.lists(st.sampled_from(["attn.q", "attn.v", "mlp.fc1", "norm1", "linear", "attn"]), max_size=4), st.data())
def test_a_misspelt_term_is_an_error_whatever_matches_beside_it(right, data):
    term = data.draw(st.sampled_from(["attn.zzz", "attn.Q", "mpl.fc1", "blocks.9.attn.q", "no*", "liner", "weight2"]))
    terms = data.draw(st.permutations([*right, term]))
    with pytest.raises(UsageError, match="no site") as error:
        select(find_sites_once(), " ".join(terms))
    assert term in error.value.message and "There is: " in error.value.hint
    if term == "mpl.fc1":
        assert 'did you mean "mlp.fc1"?' in error.value.hint


def test_a_term_of_another_family_may_match_nothing_beside_others(found):
    assert names(select(found["vit"], "attn.kv attn.q")) == names(select(found["vit"], "attn.q"))
    assert select(found["vit"], "conv grouped-conv | linear") == select(found["vit"], "conv")


@pytest.mark.parametrize(("blocks", "expected"), [("0", [0]), ("1-2", [1, 2]), ("0,2", [0, 2]), ("last:2", [1, 2])])
def test_blocks(found, blocks, expected):
    assert [site.block for site in select(found["vit"], "mlp", blocks)] == expected


@pytest.mark.parametrize(
    "blocks", ["7", "a", "1-9", "last:x", "2-1", "0,2-1", "2-1,0", "0-", "-1", "0,", "last:0", "0-999999999999"]
)
def test_blocks_that_are_not_there(found, blocks):
    with pytest.raises(UsageError, match="blocks"):
        select(found["vit"], "mlp", blocks)


@given(st.text(alphabet="atnqkv.mlpfc12 |*?[", max_size=12))
def test_any_pattern_selects_or_says_what_there_is(pattern):
    sites = find_sites_once()
    try:
        assert select(sites, pattern)
    except UsageError as error:
        assert "there is" in error.hint


_SITES: list = []


def find_sites_once():
    if not _SITES:
        _SITES.extend(find_sites(zoo()["vit"]()))
    return _SITES
