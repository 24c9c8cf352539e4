"""The methods that prove the part kinds, each against its equation written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mtpeft.errors import NotApplicable, UsageError
from mtpeft.peft.configured import as_methods
from mtpeft.peft.host import Host
from mtpeft.plugins import resolve
from mtpeft.testing.zoo import zoo

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def randomized(method: str, **settings) -> Host:
    host = Host(zoo()["vit"](), [(method, resolve("methods", method)(**settings))], ["a", "b"]).eval()
    torch.manual_seed(1)
    for owner in host.owners():
        for tensor in host.tensors(owner).values():
            tensor.data.add_(torch.randn_like(tensor), alpha=0.1)
    return host


def seen(module, host, task="a"):
    """Input and output of ``module`` in one pass; its own hooks have run by then."""
    found = {}
    module.register_forward_hook(lambda m, args, y: found.update(x=args[0], y=y))
    host(IMAGES, task)
    return found["x"], found["y"]


def part(host, site, owner="shared"):
    (name,) = host.methods
    return host.parts.by_owner[name][owner][site]


def test_lora_adds_to_its_rows_alone():
    host = randomized("lora", rank=3, alpha=6.0)
    qkv = host.backbone.blocks[1].attn.qkv
    x, y = seen(qkv, host)
    q, v = (part(host, f"blocks.1.attn.{letter}") for letter in "qv")
    change = [2 * F.linear(F.linear(x, p.A), p.B) for p in (q, v)]
    expected = F.linear(x, qkv.weight, qkv.bias)
    expected = expected + torch.cat([change[0], torch.zeros_like(change[0]), change[1]], -1)
    torch.testing.assert_close(y, expected)


def test_rslora_divides_by_the_root_of_the_rank():
    lora = resolve("methods", "lora")
    assert lora(rank=16, alpha=8.0).scale == 0.5
    assert lora(rank=16, alpha=8.0, rslora=True).scale == 2.0


def test_dora_gives_directions_their_own_magnitudes():
    host = randomized("dora", at="mlp.fc1")
    own = part(host, "blocks.0.mlp.fc1")
    frozen = zoo()["vit"]().blocks[0].mlp.fc1.weight
    a, b, scale = own.direction.factors()
    v = frozen + scale * b @ a
    torch.testing.assert_close(host.backbone.blocks[0].mlp.fc1.weight, own.magnitude[:, None] * F.normalize(v, dim=1))


def test_dora_leaves_a_row_of_zeros_at_zero():
    backbone = zoo()["vit"]()
    with torch.no_grad():
        backbone.blocks[0].mlp.fc1.weight[3] = 0
    host = Host(backbone, [("dora", resolve("methods", "dora")(at="mlp.fc1"))], ["a"])
    weight = host.backbone.blocks[0].mlp.fc1.weight
    assert weight.isfinite().all() and not weight[3].any()


def test_no_gradient_runs_through_doras_norm():
    host = randomized("dora", at="mlp.fc1")
    own = part(host, "blocks.0.mlp.fc1")
    frozen = zoo()["vit"]().blocks[0].mlp.fc1.weight.detach()
    host.backbone.blocks[0].mlp.fc1.weight.sum().backward()
    a, b, scale = own.direction.factors()
    gain = (own.magnitude / (frozen + scale * b @ a).norm(dim=1)).detach()
    expected = scale * gain[:, None].expand(-1, frozen.shape[1]) @ a.detach().T
    torch.testing.assert_close(own.direction.B.grad, expected)


@pytest.mark.parametrize("route", ["token", "both"])
def test_fused_hydra_equals_a_loop_over_its_heads(route):
    host = randomized("hydra-lora", rank=2, heads=3, alpha=4.0, route=route)
    layer = host.backbone.blocks[2].mlp.fc1
    x, y = seen(layer, host)
    own = part(host, "blocks.2.mlp.fc1")
    bias = own.logits.copies["a"] if route == "both" else None
    gates = F.linear(x, own.router, bias).softmax(-1)
    heads = own.B.unflatten(1, (3, 2))  # (out, N, r)
    loop = sum(gates[..., n : n + 1] * F.linear(F.linear(x, own.A), heads[:, n]) for n in range(3))
    torch.testing.assert_close(y, F.linear(x, layer.weight, layer.bias) + 2.0 * loop)


def test_hydra_routed_by_task_folds_into_one_update_per_task():
    host = randomized("hydra-lora", rank=2, heads=3, alpha=4.0, route="task")
    own = part(host, "blocks.0.attn.proj")
    frozen = zoo()["vit"]().blocks[0].attn.proj.weight
    for task in "ab":
        gates = own.logits.copies[task].softmax(0)
        update = sum(gates[n] * own.B[:, 2 * n : 2 * n + 2] @ own.A for n in range(3))
        torch.testing.assert_close(host.merged_state(task)["blocks.0.attn.proj.weight"], frozen + 2.0 * update)


def test_hydra_routed_by_task_drops_inputs_of_the_update_in_training():
    host = randomized("hydra-lora", route="task", dropout=0.5)
    assert not torch.equal(host.train()(IMAGES, "a").pooled, host(IMAGES, "a").pooled)
    merged = zoo()["vit"]()
    merged.load_state_dict(host.eval().merged_state("a"))
    torch.testing.assert_close(host(IMAGES, "a").pooled, Host(merged).eval()(IMAGES).pooled)
    with pytest.raises(NotApplicable, match="looks at the input"):
        Host(zoo()["eva02"](), list(host.methods.items()), ["a"])


def test_hydra_needs_heads_to_choose_among():
    with pytest.raises(UsageError, match="heads is 1"):
        resolve("methods", "hydra-lora")(heads=1)


def test_ssf_scales_and_shifts_every_operation():
    host = randomized("ssf")
    state, plain = host.merged_state("a"), zoo()["vit"]()
    for site, path in (("blocks.1.attn.qkv", "blocks.1.attn.qkv"), ("final_norm", "norm")):
        own, layer = part(host, site), plain.get_submodule(path)
        gamma = own.gamma.view(-1, *[1] * (layer.weight.ndim - 1))
        torch.testing.assert_close(state[f"{path}.weight"], gamma * layer.weight)
        torch.testing.assert_close(state[f"{path}.bias"], own.gamma * layer.bias + own.beta)
    x, y = seen(host.backbone.patch_embed.proj, host)
    own = part(host, "patch_embed")
    expected = plain.patch_embed.proj(x) * own.gamma[:, None, None] + own.beta[:, None, None]
    torch.testing.assert_close(y, expected)


def test_adaptformer_runs_beside_the_mlp():
    host = randomized("adaptformer", hidden=4, scale=0.5)
    mlp = host.backbone.blocks[1].mlp
    x, y = seen(mlp, host)
    own = part(host, "blocks.1.mlp")
    beside = 0.5 * F.linear(F.relu(F.linear(x, own.down.weight, own.down.bias)), own.up.weight, own.up.bias)
    plain = mlp.fc2.forward(mlp.act.forward(mlp.fc1.forward(x)))
    torch.testing.assert_close(y, plain + beside)


def with_prompts(prompts, deep):
    """Plain timm run by hand: prompts behind the class token, fresh for every block or carried through."""
    vit = zoo()["vit"]()
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(IMAGES)))
    for index, block in enumerate(vit.blocks):
        if deep or index == 0:
            own = prompts[index if deep else 0].expand(len(x), -1, -1)
            x = torch.cat([x[:, :1], own, x[:, 1:] if index == 0 else x[:, 1 + own.shape[1] :]], 1)
        x = block(x)
    count = prompts[0].shape[1]
    return vit.norm(torch.cat([x[:, :1], x[:, 1 + count :]], 1))


@pytest.mark.parametrize(("method", "deep"), [("vpt-shallow", False), ("vpt-deep", True)])
def test_prompts_are_tokens_of_a_longer_sequence(method, deep):
    host = randomized(method, tokens=5)
    blocks = range(3) if deep else range(1)
    expected = with_prompts([part(host, f"blocks.{b}.tokens").tokens for b in blocks], deep)
    features = host(IMAGES, "a")
    torch.testing.assert_close(features.pooled, expected[:, 0])
    torch.testing.assert_close(features.maps[0].flatten(2).transpose(1, 2), expected[:, 1:])


def test_a_ladder_climbs_on_what_the_blocks_give():
    host = randomized("lst", reduction=4)
    own, taps = part(host, "features"), []
    for block in host.backbone.blocks:
        block.register_forward_hook(lambda m, args, y: taps.append(y))
    features = host(IMAGES, "a")
    side = torch.zeros(())
    for tap, down, gate, block in zip(taps, own.down, own.gates, own.blocks, strict=True):
        keep = torch.sigmoid(gate / 0.1)
        side = block(keep * side + (1 - keep) * F.linear(tap, down.weight, down.bias))
    change = own.up(own.norm(side))
    plain = host.backbone.forward_features(IMAGES)
    torch.testing.assert_close(features.pooled, plain[:, 0] + change[:, 0])


def test_full_and_bitfit_start_where_the_backbone_is_and_put_their_own_in_its_place():
    for method, trained in (("full", "blocks.0.mlp.fc1.weight"), ("bitfit", "blocks.0.mlp.fc1.bias")):
        host = Host(zoo()["vit"](), as_methods(method), ["a"]).eval()
        own = part(host, trained)
        assert torch.equal(own.value, host.merged_state("a")[trained])
        own.value.data += 1
        assert torch.equal(own.value, host.merged_state("a")[trained])
