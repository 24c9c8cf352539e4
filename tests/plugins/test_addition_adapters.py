"""The equations of adapters, on bare parts and tiny backbones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtpeft.errors import NotApplicable, UsageError
from mtpeft.peft.host import Host
from mtpeft.peft.route import Pass, PassState, Route, TokenLayout
from mtpeft.peft.routine import Context
from mtpeft.plugins import resolve
from mtpeft.settings import build
from mtpeft.testing import zoo


def bare(part: nn.Module, *, prefix: int = 1, height: int = 3, width: int = 4, common: nn.Module | None = None):
    """A part alone, with random parameters, in a pass of two samples."""
    cell = PassState()
    cell.enter(Pass(Route.single(None, 2), TokenLayout(prefix, height, width, (height, width))))
    part.bind(cell, common)
    return scatter(part).eval()


def scatter(module: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def method_host(name: str, family: str = "vit", random: bool = True, **settings) -> Host:
    """A host with one shared method whose parts are drawn at random."""
    torch.manual_seed(0)
    host = Host(zoo()[family](), [(name, resolve("methods", name)(**settings))], ["a"])
    if random:
        scatter(host.parts)
    return host.eval()


def parts_at(host: Host) -> dict[str, nn.Module]:
    (name,) = host.methods
    return dict(host.parts.by_owner[name]["shared"].items())


def expect_close(mine: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def bottleneck(module: nn.Module, x: Tensor, activation=F.gelu) -> Tensor:
    hidden = activation(x @ module.down.weight.T + module.down.bias)
    return hidden @ module.up.weight.T + module.up.bias


@pytest.mark.parametrize(("name", "behind"), [("adapter-pfeiffer", ["mlp"]), ("adapter-houlsby", ["attn", "mlp"])])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_sequential_adapters_bend_the_branches(name, behind, activation):
    host, plain = method_host(name, activation=activation), zoo()["vit"]().blocks[1]
    parts, phi = parts_at(host), getattr(F, activation)

    def adapted(branch: str, y: Tensor) -> Tensor:
        return y + bottleneck(parts[f"blocks.1.{branch}"].bottleneck, y, phi) if branch in behind else y

    x = torch.randn(2, 17, 32)
    host(torch.zeros(2, 3, 32, 32))
    m = x + adapted("attn", plain.attn(plain.norm1(x)))
    expect_close(host.backbone.blocks[1](x), m + adapted("mlp", plain.mlp(plain.norm2(m))))


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_adaptformer_takes_the_stream_before_the_norm_if_told(family):
    host = method_host("adaptformer", family, input="raw", hidden=4, scale=0.5)
    blocks = {"vit": lambda model: model.blocks, "swin": lambda model: model.layers[0].blocks}[family]
    plain, x = blocks(zoo()[family]())[0], torch.randn(2, 17, 32) if family == "vit" else torch.randn(2, 8, 8, 16)
    host(torch.zeros(2, 3, 32, 32))
    middle = x + (plain.attn(plain.norm1(x)) if family == "vit" else plain._attn(plain.norm1(x)))
    change = 0.5 * bottleneck(parts_at(host)["blocks.0.mlp"], middle, F.relu)
    expect_close(blocks(host.backbone)[0](x), middle + plain.mlp(plain.norm2(middle)) + change)


@pytest.mark.parametrize(("family", "at"), [("convnext", "mlp"), ("maxvit", "mlp"), ("vit", "blocks.0.mlp")])
def test_adaptformer_refuses_where_there_is_no_stream_before_a_norm(family, at):
    with pytest.raises(NotApplicable, match="no stream before the norm of"):
        method_host("adaptformer", family, input="raw", at=at)


def test_adapter_plus_scales_each_channel():
    host, x = method_host("adapter-plus"), torch.randn(2, 17, 32)
    host(torch.zeros(2, 3, 32, 32))
    part, y = parts_at(host)["blocks.1"], zoo()["vit"]().blocks[1](x)
    expect_close(host.backbone.blocks[1](x), y + part.gain * bottleneck(part.bottleneck, y))


def test_adapter_plus_starts_small_with_gains_of_one():
    part = parts_at(method_host("adapter-plus", random=False))["blocks.0"]
    assert bool((part.gain == 1).all())
    weights = torch.cat([p.detach().flatten() for p in (part.bottleneck.down.weight, part.bottleneck.up.weight)])
    assert 0.007 < float(weights.std()) < 0.011
    assert float(weights.abs().max()) <= 0.02


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_repadapter_is_the_affine_map_that_it_merges_as(groups):
    part = parts_at(method_host("repadapter", hidden=8, groups=groups, scale=0.5))["blocks.0.attn.qkv"]
    adapter, x = part.adapter, torch.randn(2, 5, 32)
    a, b = adapter.down.weight, torch.zeros(32, 8)
    for g in range(groups):
        wide, narrow = 32 // groups, 8 // groups
        b[g * wide : (g + 1) * wide, g * narrow : (g + 1) * narrow] = adapter.up[g]
    expected = x + 0.5 * ((x @ a.T + adapter.down.bias) @ b.T + adapter.shift)
    expect_close(part(x), expected)
    matrix, shift = part.affine()
    expect_close(x @ matrix.T + shift, expected)


def test_repadapter_is_the_same_where_a_weight_is_read_directly():
    host = method_host("repadapter", "beit")
    part, linear = parts_at(host)["blocks.0.attn.qkv"], nn.Linear(32, 96)
    x = torch.randn(4, 32)
    weight, bias = part(linear.weight), part.bias(linear.weight, linear.bias)
    expect_close(F.linear(x, weight, bias), linear(x + part.adapter.change(x)))


def test_repadapter_refuses_dropout_where_a_weight_is_read_directly():
    with pytest.raises(NotApplicable, match="cannot drop activations") as error:
        method_host("repadapter", "beit", dropout=0.1)
    assert error.value.hint == "set dropout = 0"


def quick_gelu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-1.702 * x))


def by_hand(weight: Tensor, bias: Tensor, image: Tensor) -> Tensor:
    """A 3 x 3 convolution of ``image (B, H, W, C)``, tap by tap."""
    _, height, width, _ = image.shape
    padded = F.pad(image, (0, 0, 1, 1, 1, 1))
    taps = [(r, c) for r in range(3) for c in range(3)]
    return bias + sum(padded[:, r : r + height, c : c + width] @ weight[:, :, r, c].T for r, c in taps)


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_convpass_convolves_the_grid_and_each_prefix_token_alone(prefix):
    site = method_host("convpass", random=False).sites
    at = next(s for s in site if s.name == "blocks.0.mlp")
    part = bare(resolve("methods", "convpass")(hidden=4, scale=0.7).part(at), prefix=prefix)
    x, y = torch.randn(2, prefix + 12, 32), torch.randn(2, prefix + 12, 32)
    z = quick_gelu(x @ part.down.weight.T + part.down.bias)
    grid = by_hand(part.conv.weight, part.conv.bias, z[:, prefix:].reshape(2, 3, 4, 4)).reshape(2, 12, 4)
    alone = z[:, :prefix] @ part.conv.weight[:, :, 1, 1].T + part.conv.bias
    hidden = quick_gelu(torch.cat([alone, grid], 1))
    expect_close(part(x, y), y + 0.7 * (hidden @ part.up.weight.T + part.up.bias))


def test_convpass_runs_over_windows_where_attention_does():
    part = parts_at(method_host("convpass", "swin"))["blocks.0.attn"]
    x = torch.randn(8, 16, 16)  # two samples of four windows of 4 x 4
    z = quick_gelu(x @ part.down.weight.T + part.down.bias).reshape(8, 4, 4, 8)
    hidden = quick_gelu(by_hand(part.conv.weight, part.conv.bias, z)).reshape(8, 16, 8)
    expect_close(part(x, torch.zeros_like(x)), hidden @ part.up.weight.T + part.up.bias)


@pytest.mark.parametrize("name", ["convpass", "mona"])
def test_convolutions_refuse_tokens_in_another_order(name):
    with pytest.raises(NotApplicable, match="row by row"):
        method_host(name, "hiera")


def test_mona_is_its_equation():
    host = method_host("mona", hidden=6)
    adapter, x = parts_at(host)["blocks.0"].adapter, torch.randn(2, 8, 8, 32)
    u = adapter.gamma * F.layer_norm(x, (32,), adapter.norm.weight, adapter.norm.bias) + adapter.gamma_x * x
    q = (u @ adapter.down.weight.T + adapter.down.bias).movedim(-1, 1)
    depthwise = [F.conv2d(q, c.weight, c.bias, padding=c.kernel_size[0] // 2, groups=6) for c in adapter.depthwise]
    assert [tuple(c.weight.shape) for c in adapter.depthwise] == [(6, 1, 3, 3), (6, 1, 5, 5), (6, 1, 7, 7)]
    q1 = q + torch.stack(depthwise).mean(0)
    q2 = q1 + F.conv2d(q1, adapter.mix.weight, adapter.mix.bias)
    change = F.gelu(q2.movedim(1, -1)) @ adapter.up.weight.T + adapter.up.bias
    expect_close(adapter(x, TokenLayout()), change)


def test_mona_sits_behind_attention_and_behind_the_block():
    host, plain = method_host("mona", "swin"), zoo()["swin"]().layers[0].blocks[1]
    first, second = (parts_at(host)[name].adapter for name in ("blocks.1.middle", "blocks.1"))
    x = torch.randn(2, 8, 8, 16)
    host(torch.zeros(2, 3, 32, 32))
    m = x + plain._attn(plain.norm1(x))
    m = m + first(m, TokenLayout())
    y = m + plain.mlp(plain.norm2(m))
    expect_close(host.backbone.layers[0].blocks[1](x), y + second(y, TokenLayout()))


def test_patt_changes_keys_and_values_alone():
    host, plain = method_host("patt", hidden=4, scale=0.2), zoo()["vit"]().blocks[0].attn.qkv
    parts, x = parts_at(host), torch.randn(2, 17, 32)
    host(torch.zeros(2, 3, 32, 32))
    q, k, v = plain(x).chunk(3, -1)
    change = {letter: 0.2 * bottleneck(parts[f"blocks.0.attn.{letter}"], x, torch.tanh) for letter in "kv"}
    expect_close(host.backbone.blocks[0].attn.qkv(x), torch.cat([q, k + change["k"], v + change["v"]], -1))


def test_sct_maps_the_chosen_channels():
    part = parts_at(method_host("sct", channels=3, scale=0.5))["blocks.0.middle"]
    part.channels.copy_(torch.tensor([7, 2, 30]))
    x = torch.randn(2, 5, 32)
    expected = x.clone()
    expected[..., [7, 2, 30]] += 0.5 * (x[..., [7, 2, 30]] @ part.weight.T + part.bias)
    expect_close(part(x), expected)


def test_sct_chooses_the_channels_that_the_classes_use():
    host, plain = method_host("sct", channels=5, random=False), zoo()["vit"]()
    images, labels = torch.randn(6, 3, 32, 32), [0, 1, 1, 2, 0, 1]
    targets = [{"label": torch.tensor(label)} for label in labels]
    batches = [("a", images[:4], targets[:4]), ("a", images[4:], targets[4:])]
    host.routines["sct"].calibrate(Context(host, ("a",), ("a",), batches=lambda: iter(batches)))
    seen = []
    plain.blocks[1].norm2.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    plain(images)
    squares = seen[0].square().mean(1)
    norms = [squares[[i for i, got in enumerate(labels) if got == label]].mean(0).sqrt() for label in range(3)]
    best = set(torch.stack(norms).mean(0).topk(5).indices.tolist())
    part = parts_at(host)["blocks.1.middle"]
    assert set(part.channels.tolist()) == best
    assert bool(part.chosen)


def test_sct_chooses_once():
    host = method_host("sct", channels=5, random=False)
    part = parts_at(host)["blocks.0.middle"]
    part.chosen.fill_(1)
    host.routines["sct"].calibrate(Context(host, ("a",), ("a",), batches=lambda: iter(())))
    assert part.channels.tolist() == [0, 1, 2, 3, 4]


def test_sct_leaves_a_frozen_owner_as_it_is():
    host = method_host("sct", channels=5, random=False)
    host.freeze("shared")
    batches = [("a", torch.randn(3, 3, 32, 32), [{"label": torch.tensor(0)}] * 3)]
    host.routines["sct"].calibrate(Context(host, ("a",), ("a",), batches=lambda: iter(batches)))
    assert parts_at(host)["blocks.0.middle"].channels.tolist() == [0, 1, 2, 3, 4]


def test_sct_takes_images_without_a_class_as_one_class():
    host = method_host("sct", channels=5, random=False)
    batches = [("a", torch.randn(3, 3, 32, 32), [{"mask": None}] * 3)]
    host.routines["sct"].calibrate(Context(host, ("a",), ("a",), batches=lambda: iter(batches)))
    assert all(bool(part.chosen) for part in parts_at(host).values())


def test_sct_keeps_classes_of_different_tasks_apart():
    torch.manual_seed(0)
    host = Host(zoo()["vit"](), [("sct", resolve("methods", "sct")())], ["a", "b"]).eval()
    part = parts_at(host)["blocks.0.middle"]
    batches = [(task, torch.randn(2, 3, 32, 32), [{"label": torch.tensor(0)}] * 2) for task in ("a", "b")]
    met, choose = [], part.choose
    part.choose = lambda: (met.extend(part.squares), choose())
    host.routines["sct"].calibrate(Context(host, ("a", "b"), ("a", "b"), batches=lambda: iter(batches)))
    assert met == [("a", 0), ("b", 0)]


def test_compacter_is_a_sum_of_kronecker_products_with_shared_factors():
    host = method_host("compacter", hidden=8, terms=4, rank=2)
    part, rule = parts_at(host)["blocks.1.attn"], host.parts.shared_modules["compacter"]["shared"].A
    assert rule.shape == (4, 4, 4)

    def weight(linear: nn.Module) -> Tensor:
        return sum(torch.kron(rule[i], linear.S[i] @ linear.T[i]) for i in range(4))

    expect_close(part.down.weight(rule), weight(part.down))
    x, y = torch.randn(2, 5, 32), torch.randn(2, 5, 32)
    hidden = F.gelu(y @ weight(part.down) + part.down.bias)
    expect_close(part(x, y), y + hidden @ weight(part.up) + part.up.bias)


def test_compacter_refuses_widths_that_its_terms_do_not_divide():
    with pytest.raises(NotApplicable, match="into 3 pieces"):
        method_host("compacter", terms=3)


def test_bi_adapter_runs_on_two_values_for_each_weight():
    part = parts_at(method_host("bi-adapter"))["blocks.0.mlp"]
    for linear in (part.down, part.up):
        weight, latent = linear.quantised().detach(), linear.weight.detach()
        low, high = weight.unique().tolist() if len(weight.unique()) == 2 else (weight.min(), weight.max())
        assert weight.sub(low).abs().minimum(weight.sub(high).abs()).max() < 1e-6
        expect_close(torch.tensor((low + high) / 2), latent.mean())
        expect_close(torch.tensor((high - low) / 2), 0.67448975 * latent.std())
        assert torch.equal(linear.bits(), latent > latent.mean())


@pytest.mark.parametrize("precision", [torch.float64, torch.bfloat16])
def test_bi_adapter_keeps_the_precision_of_its_weights(precision):
    linear = parts_at(method_host("bi-adapter"))["blocks.0.mlp"].down.to(precision)
    assert linear(torch.randn(7, 32, dtype=precision)).dtype == precision


def test_bi_adapter_passes_gradients_through_the_quantiser():
    linear = parts_at(method_host("bi-adapter"))["blocks.0.mlp"].down
    x, seed = torch.randn(7, 32), torch.randn(7, 32)
    (gradient,) = torch.autograd.grad((linear(x) * seed).sum(), linear.weight)
    w = linear.weight.detach().requires_grad_()
    mean, deviation = w.mean(), w.std()
    levels = torch.where(w > mean, 0.67448975, -0.67448975).detach()
    normal = (w - mean) / (deviation + 1e-5)
    straight = normal - normal.detach() + levels  # the quantiser counted as the identity
    (expected,) = torch.autograd.grad((F.linear(x, straight * deviation + mean) * seed).sum(), w)
    expect_close(gradient, expected)


def test_lorand_sums_branches_that_share_their_kernels():
    part = parts_at(method_host("lorand", branches=3, kernel=2, hidden=6))["blocks.0.mlp"]
    x, y = torch.randn(2, 5, 32), torch.randn(2, 5, 32)
    down = sum(part.down_out[i] @ part.kernels[i] @ part.down_in[i] for i in range(3))
    up = sum(part.up_out[i] @ part.kernels[i] @ part.up_in[i] for i in range(3))
    assert down.shape == (6, 32)
    expect_close(part(x, y), y + F.gelu(y @ down.T + part.down_bias) @ up.T + part.up_bias)


def test_res_tuning_adds_an_adapter_of_the_operations_input():
    part = parts_at(method_host("res-tuning", scale=0.5))["blocks.0.attn"]
    x, y = torch.randn(2, 5, 32), torch.randn(2, 5, 32)
    expect_close(part(x, y), y + 0.5 * bottleneck(part.tuner, x))


@pytest.mark.parametrize("tuner", ["prefix", "prompt"])
def test_res_tuning_adds_attention_to_learned_tokens(tuner):
    tuned = parts_at(method_host("res-tuning", tuner=tuner, tokens=3))["blocks.0.attn"].tuner
    keys, x = tuned.keys, torch.randn(2, 5, 32)
    values, gain = (tuned.values, 1) if tuner == "prefix" else (keys, tuned.gain)
    heads = [slice(0, 16), slice(16, 32)]
    scores = [(x[..., h] @ keys[:, h].T / 4).softmax(-1) for h in heads]
    expect_close(tuned(x), gain * torch.cat([s @ values[:, h] for s, h in zip(scores, heads, strict=True)], -1))


def test_prompts_of_res_tuning_grow_apart():
    host, target = method_host("res-tuning", random=False, tuner="prompt", tokens=3), torch.randn(4, 32)
    start, images = parts_at(host)["blocks.0.mlp"].tuner.keys.detach().clone(), torch.randn(4, 3, 32, 32)
    optimizer = torch.optim.Adam(host.trainable(["a"]).values(), 1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        F.mse_loss(host(images, "a").pooled, target).backward()
        optimizer.step()
    steps = parts_at(host)["blocks.0.mlp"].tuner.keys.detach() - start
    assert float((steps[1:] - steps[0]).abs().min()) > 0


@pytest.mark.parametrize("name", ["adaptformer", "bi-adapter", "convpass", "res-tuning", "u-tuning"])
@pytest.mark.parametrize(("family", "at"), [("vit", "mlp.fc1"), ("pvt", "attn mlp.fc1"), ("resnet", "block")])
def test_what_stands_beside_a_module_refuses_one_that_changes_the_shape(name, family, at):
    with pytest.raises(NotApplicable, match="one shape before and behind"):
        method_host(name, family, at=at)


def test_res_tuning_refuses_attention_that_pools():
    with pytest.raises(NotApplicable, match="one shape before and behind"):
        method_host("res-tuning", "hiera")
    assert method_host("res-tuning", "hiera", at="mlp").methods


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("adapter-pfeiffer", {"hidden": 0}),
        ("adapter-houlsby", {"dropout": 1.0}),
        ("adapter-plus", {"hidden": -1}),
        ("repadapter", {"hidden": 7, "groups": 2}),
        ("repadapter", {"groups": 0}),
        ("convpass", {"hidden": 0}),
        ("mona", {"dropout": -0.1}),
        ("patt", {"hidden": 0}),
        ("sct", {"channels": 0}),
        ("compacter", {"hidden": 6, "terms": 4}),
        ("bi-adapter", {"hidden": 0}),
        ("lorand", {"kernel": 0}),
        ("res-tuning", {"tokens": 0}),
        ("res-tuning", {"tuner": "prefix", "tokens": 1}),
        ("u-tuning", {"tuner": "prefix", "tokens": 1}),
    ],
)
def test_settings_out_of_range_are_refused(name, settings):
    with pytest.raises(UsageError, match=r"does not fit|hidden is|tokens is"):
        build(resolve("methods", name), settings)
