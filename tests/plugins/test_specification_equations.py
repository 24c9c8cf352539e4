"""The specification methods' equations on a tiny ViT, and where their parts sit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mtpeft.backbone.extract import Extractor
from mtpeft.errors import NotApplicable, UsageError
from mtpeft.peft.host import Host
from mtpeft.plugins import resolve
from mtpeft.testing import zoo


def attached(name: str, family: str = "vit", **settings) -> Host:
    """A host with ``name`` on it whose parts have moved from where they start."""
    torch.manual_seed(0)
    host = Host(zoo()[family](), [(name, resolve("methods", name)(**settings))], ["a"]).eval()
    with torch.no_grad():
        for parameter in host.trainable(["a"]).values():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return host


def trained(host: Host) -> Iterator[str]:
    """Sites of the trained tensors."""
    return (name.split("/")[1] for name in host.tensors("shared"))


def value(host: Host, site: str, name: str) -> Tensor:
    method = next(iter(host.methods))
    return host.tensors("shared")[f"{method}/{site}/{name}"].detach()


def test_partial_k_trains_the_last_blocks_and_the_norm_when_asked():
    assert {name.split(".")[1] for name in trained(attached("partial-k", k=2))} == {"1", "2"}
    assert {n for n in trained(attached("partial-k", final_norm=True)) if not n.startswith("blocks.2.")} == {
        "final_norm.weight",
        "final_norm.bias",
    }


def test_partial_k_refuses_more_blocks_than_there_are():
    with pytest.raises(NotApplicable, match="train 4 blocks, and VisionTransformer has 3"):
        attached("partial-k", k=4)
    with pytest.raises(UsageError, match="k = 0 does not fit"):
        attached("partial-k", k=0)


def test_partial_k_needs_no_gradient_before_its_blocks():
    host = attached("partial-k")
    seen = []
    host.backbone.blocks[1].register_forward_hook(lambda module, args, output: seen.append(output.requires_grad))
    features = host(torch.randn(2, 3, *host.image_size), "a")
    assert seen == [False] and features.pooled.requires_grad


def test_attn_only_trains_all_of_attention_and_nothing_else():
    assert {n.split(".", 2)[2] for n in trained(attached("attn-only"))} == {
        "attn.qkv.weight",
        "attn.qkv.bias",
        "attn.proj.weight",
        "attn.proj.bias",
    }
    assert any("relative_position_bias_table" in n for n in trained(attached("attn-only", "swin")))


def test_ln_tune_may_leave_the_shifts_alone():
    assert all(name.endswith(".weight") for name in trained(attached("ln-tune", bias=False)))
    assert len(set(trained(attached("ln-tune")))) == 2 * len(set(trained(attached("ln-tune", bias=False))))


def test_difffit_scales_each_branch_by_its_gain():
    host = attached("difffit")
    gamma, bias = value(host, "blocks.1.attn.proj", "gamma"), value(host, "blocks.1.attn.proj.bias", "value")
    frozen = zoo()["vit"]().blocks[1].attn.proj.weight
    merged = host.merged_state("a")
    torch.testing.assert_close(merged["blocks.1.attn.proj.weight"], gamma[:, None] * frozen)
    torch.testing.assert_close(merged["blocks.1.attn.proj.bias"], gamma * bias)


def test_ia3_scales_keys_values_and_hidden_units_and_no_query():
    host = attached("ia3")
    plain, merged = zoo()["vit"]().blocks[0], host.merged_state("a")
    keys, values, hidden = (value(host, f"blocks.0.{site}", "gain") for site in ("attn.k", "attn.v", "mlp.fc2"))
    gains = torch.cat([torch.ones_like(keys), keys, values])
    torch.testing.assert_close(merged["blocks.0.attn.qkv.weight"], gains[:, None] * plain.attn.qkv.weight)
    torch.testing.assert_close(merged["blocks.0.attn.qkv.bias"], gains * plain.attn.qkv.bias)
    torch.testing.assert_close(merged["blocks.0.mlp.fc2.weight"], plain.mlp.fc2.weight * hidden)
    torch.testing.assert_close(merged["blocks.0.mlp.fc2.bias"], plain.mlp.fc2.bias)


def test_attnscale_scales_the_scores_of_each_head():
    host = attached("attnscale", norms=False)
    scale, attention = value(host, "blocks.0.attn.q", "scale"), zoo()["vit"]().blocks[0].attn
    x = torch.randn(2, 5, 32)
    q, k, v = attention.qkv(x).view(2, 5, 3, 2, 16).permute(2, 0, 3, 1, 4)  # heads: 2 of 16
    scores = scale.view(2, 1, 1) * (q @ k.mT) / 16**0.5
    expected = attention.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 5, 32))
    host.attachments.pass_state.task = "a"
    torch.testing.assert_close(host.backbone.blocks[0].attn(x), expected)


@pytest.mark.parametrize(("family", "at"), [("resnet", "conv"), ("convnext", "grouped-conv"), ("vit", "norm1 mlp.fc1")])
def test_ia3_scales_the_rows_of_any_weight(family, at):
    host = attached("ia3", family, at=at)
    plain, merged = zoo()[family]().state_dict(), host.merged_state("a")
    for placed in host.parts_of(host.methods["ia3"], ["a"]):
        key = f"{placed.site.path}.weight"
        gain = placed.part.gain.detach().view(-1, *[1] * (plain[key].ndim - 1))
        torch.testing.assert_close(merged[key], gain * plain[key])


@pytest.mark.parametrize("at", ["attn.qkv", "attn", "norm1", "mlp.fc1"])
def test_attnscale_refuses_what_is_no_query_projection(at):
    with pytest.raises(NotApplicable, match="is no projection of them"):
        attached("attnscale", at=at)


@pytest.mark.parametrize("family", ["swinv2", "maxvit", "resnet"])
def test_attnscale_refuses_where_a_scale_on_queries_means_nothing(family):
    with pytest.raises(NotApplicable, match="attnscale scales queries"):
        attached("attnscale", family)


def test_adapterbias_shifts_each_token_along_one_direction():
    host = attached("adapterbias")
    layer, seen = host.backbone.blocks[1].mlp.fc2, {}
    layer.register_forward_hook(lambda module, args, y: seen.update(hidden=args[0], y=y))
    host(torch.randn(2, 3, *host.image_size), "a")
    weight, offset, direction = (value(host, "blocks.1.mlp.fc2", name) for name in ("weight", "offset", "direction"))
    amount = seen["hidden"] @ weight[0] + offset
    plain = F.linear(seen["hidden"], layer.weight, zoo()["vit"]().blocks[1].mlp.fc2.bias)
    torch.testing.assert_close(seen["y"], plain + torch.einsum("bn,d->bnd", amount, direction[:, 0]))


def test_adapterbias_is_an_update_of_rank_one():
    host = attached("adapterbias")
    weight, offset, direction = (value(host, "blocks.1.mlp.fc2", name) for name in ("weight", "offset", "direction"))
    plain, merged = zoo()["vit"]().blocks[1].mlp.fc2, host.merged_state("a")
    torch.testing.assert_close(merged["blocks.1.mlp.fc2.weight"], plain.weight + direction @ weight)
    torch.testing.assert_close(merged["blocks.1.mlp.fc2.bias"], plain.bias + offset * direction[:, 0])


@pytest.mark.parametrize("init", ["pissa", "olora", "orthogonal"])
@pytest.mark.parametrize("alpha", [None, 12.0])
def test_lora_that_departs_from_its_start_adds_the_change_of_its_product(init, alpha):
    torch.manual_seed(0)
    backbone = zoo()["vit"]()
    host = Host(backbone, [("lora", resolve("methods", "lora")(rank=4, init=init, alpha=alpha))], ["a"])
    part, frozen = host.parts_of(host.methods["lora"], ["a"])[0].part, backbone.blocks[0].attn.qkv.weight[:32].clone()
    a, b, scale = part.A.detach().clone(), part.B.detach().clone(), (alpha or 4) / 4
    product = scale * b @ a
    if init == "pissa":
        left, values, right = torch.linalg.svd(frozen)
        torch.testing.assert_close(product, left[:, :4] * values[:4] @ right[:4])
    elif init == "olora":
        q, r = torch.linalg.qr(frozen)
        torch.testing.assert_close(product, q[:, :4] @ r[:4])
    else:
        assert product.abs().max() < 1e-6 < min(a.abs().max(), b.abs().max())
    with torch.no_grad():
        part.A.mul_(1.5)
        part.B.add_(0.1)
    change = host.merged_state("a")["blocks.0.attn.qkv.weight"][:32] - frozen
    torch.testing.assert_close(change, scale * (part.B @ part.A - b @ a).detach(), atol=1e-6, rtol=1e-5)


def test_gaussian_lora_draws_with_a_deviation_of_one_over_the_rank():
    host = Host(zoo()["vit"](), [("lora", resolve("methods", "lora")(rank=4, init="gaussian", at="linear"))], ["a"])
    drawn = torch.cat([t.flatten() for n, t in host.tensors("shared").items() if n.endswith("/A")])
    assert drawn.std().item() == pytest.approx(0.25, rel=0.05)


def test_pissa_moves_no_other_task_by_a_bit():
    plain, torch_seed = zoo()["vit"](), torch.Generator().manual_seed(0)
    lora = resolve("methods", "lora")(rank=4, init="pissa", scope="task")
    host = Host(zoo()["vit"](), [("lora", lora)], ["a", "b"]).eval()
    images = torch.randn(3, 3, *host.image_size, generator=torch_seed)
    with torch.no_grad():
        before = Extractor(plain, host.image_size)(plain, images).pooled
        for parameter in host.trainable(["a"]).values():
            parameter.add_(0.1)
        assert torch.equal(host(images, "b").pooled, before)
        assert not torch.allclose(host(images, "a").pooled, before)


def test_a_rank_that_a_weight_does_not_have_is_refused():
    with pytest.raises(UsageError, match='init = "pissa" takes rank 64 from a weight of 32 x 32') as error:
        attached("lora", rank=64, init="pissa")
    assert "at most 32" in error.value.hint


def test_lora_fa_trains_b_alone():
    host = attached("lora-fa", rank=3)
    assert {name.rsplit("/", 1)[1] for name in host.trainable(["a"])} == {"B"}
    a, b = value(host, "blocks.0.attn.v", "A"), value(host, "blocks.0.attn.v", "B")
    change = host.merged_state("a")["blocks.0.attn.qkv.weight"] - zoo()["vit"]().blocks[0].attn.qkv.weight
    torch.testing.assert_close(change[64:], b @ a, atol=1e-6, rtol=1e-5)
    assert not change[32:64].any() and F.mse_loss(a, torch.zeros_like(a)) > 0
