"""The equations of prompts, prefixes and side streams, on tiny backbones."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtpeft import load
from mtpeft.errors import NotApplicable, UsageError
from mtpeft.peft.host import Host
from mtpeft.peft.routine import Context
from mtpeft.plugins import resolve
from mtpeft.settings import build
from mtpeft.testing import zoo


def method_host(name: str, family: str = "vit", random: bool = True, **settings) -> Host:
    """A host with one shared method whose parts are drawn at random."""
    torch.manual_seed(0)
    host = Host(zoo()[family](), [(name, resolve("methods", name)(**settings))], ["a"])
    for parameter in host.parts.parameters() if random else ():
        nn.init.normal_(parameter, std=0.3)
    return host.eval()


def parts_at(host: Host) -> dict[str, nn.Module]:
    (name,) = host.methods
    return dict(host.parts.by_owner[name]["shared"].items())


def expect_close(mine: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def attention(module: nn.Module, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """``module`` on ``x (B, N, 32)`` with more keys and values ``(p, 32)`` in front, two heads, by hand."""
    q, k, v = (x @ module.qkv.weight.T + module.qkv.bias).chunk(3, -1)
    k, v = (torch.cat([extra.expand(len(x), -1, -1), own], 1) for extra, own in ((keys, k), (values, v)))
    heads = []
    for h in (slice(0, 16), slice(16, 32)):
        weights = (q[..., h] @ k[..., h].transpose(1, 2) / 4).softmax(-1)
        heads.append(weights @ v[..., h])
    return torch.cat(heads, -1) @ module.proj.weight.T + module.proj.bias


def test_prefix_joins_learned_keys_and_values():
    host, plain, x = method_host("prefix", tokens=3), zoo()["vit"]().blocks[1].attn, torch.randn(2, 17, 32)
    host(torch.zeros(2, 3, 32, 32))
    part = parts_at(host)["blocks.1.attn"]
    expect_close(host.backbone.blocks[1].attn(x), attention(plain, x, part.keys[0], part.values[0]))


def test_prefixes_start_xavier_uniform():
    part = parts_at(method_host("prefix", random=False, tokens=10))["blocks.0.attn"]
    bound = (6 / (10 + 32)) ** 0.5
    for prefix in (part.keys.detach(), part.values.detach()):
        assert 0.9 * bound < float(prefix.abs().max()) <= bound


def test_e2vpt_shares_a_prompt_between_keys_and_values_and_adds_tokens():
    host, plain = method_host("e2vpt", tokens=2, key_values=3), zoo()["vit"]().blocks[1]
    parts, x = parts_at(host), torch.randn(2, 17, 32)
    host(torch.zeros(2, 3, 32, 32))
    prompts, shared = parts["blocks.1.tokens"].tokens[0], parts["blocks.1.attn"].tokens[0]
    z = torch.cat([x[:, :1], prompts.expand(2, -1, -1), x[:, 1:]], 1)
    z = z + attention(plain.attn, plain.norm1(z), shared, shared)
    z = z + plain.mlp(plain.norm2(z))
    expect_close(host.backbone.blocks[1](x), torch.cat([z[:, :1], z[:, 3:]], 1))


@pytest.mark.parametrize("name", ["prefix", "e2vpt"])
@pytest.mark.parametrize("family", ["beit", "swin", "dinov3"])
def test_key_value_prompts_refuse_positions_inside_attention(name, family):
    with pytest.raises(NotApplicable, match="mixes positions or windows"):
        method_host(name, family)


@pytest.mark.parametrize("family", ["vit", "vit-gap", "resnet"])
def test_vp_adds_a_frame(family):
    host = method_host("vp", family, width=5)
    ((_, part),) = parts_at(host).items()
    height, width = host.image_size
    images = torch.randn(2, 3, height, width)
    framed = images.clone()
    framed[:, :, :5] += part.top
    framed[:, :, -5:] += part.bottom
    framed[:, :, 5:-5, :5] += part.left
    framed[:, :, 5:-5, -5:] += part.right
    expect_close(part(images.movedim(1, -1)).movedim(-1, 1), framed)
    expect_close(host(images, "a").pooled, Host(zoo()[family]()).eval()(framed).pooled)


def test_vp_frames_images_of_another_size():
    ((_, part),) = parts_at(method_host("vp", "resnet", width=5)).items()
    with torch.no_grad():
        change = part(torch.zeros(1, 96, 128, 3))
    assert bool(change.any(-1)[:, :5].all())
    assert bool(change.any(-1)[:, :, -5:].all())
    assert not change[:, 5:-5, 5:-5].any()


def test_vp_keeps_the_papers_proportion_by_default():
    ((_, part),) = parts_at(method_host("vp", "resnet")).items()
    assert part.border == round(64 * 30 / 224)


def test_vp_refuses_a_border_that_leaves_nothing():
    with pytest.raises(NotApplicable, match="16 pixels wide leaves nothing of an image of 32 x 32") as error:
        method_host("vp", width=16)
    assert error.value.hint == "set width smaller"


def test_vp_refuses_images_that_are_all_border():
    with pytest.raises(NotApplicable, match="9 pixels wide leaves nothing of an image of 16 x 80"):
        method_host("vp", "resnet")(torch.zeros(1, 3, 16, 80))


def with_streams(host: Host, x: Tensor, start: int, feed=lambda z: z) -> Tensor:
    """The blocks of a plain ViT with a side stream along them."""
    parts, h = parts_at(host), 0.0
    for index, block in enumerate(zoo()["vit"]().blocks):
        part = parts[f"blocks.{index}"]
        h = h + x @ part.A.T @ part.B.T
        x = block(x) + (feed(h / (1 + torch.exp(-100 * h))) if index >= start else 0)
    return x


@pytest.mark.parametrize("start", [None, 0, 2])
def test_dtl_feeds_its_stream_back_in_late_blocks(start):
    host, seen = method_host("dtl", start=start), []
    host.backbone.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    host.backbone.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    host(torch.randn(2, 3, 32, 32), "a")
    expect_close(seen[1], with_streams(host, seen[0], 1 if start is None else start))


@pytest.mark.parametrize("kernel", [3, 4])
def test_dtl_plus_convolves_the_grid_of_the_stream(kernel):
    host, seen = method_host("dtl-plus", kernel=kernel), []
    weight = host.parts.shared_modules["dtl-plus"]["shared"].weight
    assert weight.shape == (32, 1, kernel, kernel)
    host.backbone.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    host.backbone.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    host(torch.randn(2, 3, 32, 32), "a")

    def feed(theta: Tensor) -> Tensor:
        image = theta[:, 1:].reshape(2, 4, 4, 32).movedim(-1, 1)
        low = (kernel - 1) // 2
        padded = F.pad(image, (low, kernel - 1 - low, low, kernel - 1 - low))
        windows = padded.unfold(2, kernel, 1).unfold(3, kernel, 1)  # (2, 32, 4, 4, k, k)
        grid = (windows * weight.view(32, 1, 1, kernel, kernel)).sum((-1, -2))
        return torch.cat([theta[:, :1], grid.flatten(2).transpose(1, 2)], 1)

    expect_close(seen[1], with_streams(host, seen[0], 1, feed))


def test_dtl_needs_no_gradient_before_the_first_block_that_is_fed_back():
    host, seen = method_host("dtl", start=2), []
    host.backbone.blocks[1].register_forward_hook(lambda module, args, output: seen.append(output))
    assert host(torch.randn(1, 3, 32, 32), "a").pooled.requires_grad
    assert not seen[0].requires_grad


def test_dtl_refuses_a_start_behind_the_last_block():
    with pytest.raises(NotApplicable, match="fed back from block 9 on") as error:
        method_host("dtl", start=9)
    assert error.value.hint == "set start lower"


@pytest.mark.parametrize("name", ["dtl", "dtl-plus"])
def test_dtl_refuses_a_stream_that_ends_before_it_is_fed_back(name):
    with pytest.raises(NotApplicable, match="fed back from block 1 on, and its stream ends at block 0"):
        method_host(name, blocks="0")


@pytest.mark.parametrize("family", ["vit", "siglip", "vit-reg4"])
def test_vqt_reads_what_a_masked_block_would_give_its_prompts(family):
    host, plain, seen = method_host("vqt", family, tokens=3), Host(zoo()[family]()).eval(), []
    images = torch.randn(2, 3, *host.image_size)
    for block in plain.backbone.blocks:
        block.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    before, after = plain(images), host(images, "a")
    expected = []
    for index, (block, x) in enumerate(zip(zoo()[family]().blocks, seen, strict=True)):
        prompts = parts_at(host)[f"blocks.{index}.attn.qkv"].tokens.expand(2, -1, -1)
        mask = torch.zeros(x.shape[1] + 3, x.shape[1] + 3)
        mask[:, -3:] = float("-inf")  # nobody sees a prompt
        expected.append(block(torch.cat([x, prompts], 1), attn_mask=mask)[:, -3:].flatten(1))
    assert host.info.pooled == after.pooled.shape[1] == 32 + 3 * 3 * 32
    expect_close(after.pooled[:, 32:], torch.cat(expected, 1))
    assert torch.equal(after.pooled[:, :32], before.pooled)
    assert torch.equal(after.maps[-1], before.maps[-1])


def test_vqt_keeps_no_gradient_in_the_backbone():
    host = method_host("vqt")
    features = host(torch.randn(1, 3, 32, 32), "a")
    assert features.pooled.requires_grad
    assert not features.maps[-1].requires_grad


def test_vqt_gives_samples_of_an_unknown_task_features_of_the_same_width():
    host = Host(zoo()["vit"](), [("vqt", resolve("methods", "vqt")(scope="task"))], ["a", "b"]).eval()
    pooled = host(torch.randn(3, 3, 32, 32), ["a", None, "b"]).pooled
    assert pooled.shape == (3, host.info.pooled)
    assert pooled[:, 32:].any(1).tolist() == [True, False, True]


@pytest.mark.parametrize("family", ["swin", "resnet", "eva02-base"])
def test_vqt_refuses_other_blocks(family):
    with pytest.raises(NotApplicable, match="plain ViT block"):
        method_host("vqt", family)


@pytest.mark.parametrize("family", ["vit", "vit-reg4", "vit-gap", "siglip", "beit", "dinov3"])
def test_lst_pools_its_change_as_the_backbone_pools(family):
    host, images = method_host("lst", family), torch.randn(2, 3, *zoo()[family]().patch_embed.img_size)
    after, before = host(images, "a"), Host(zoo()[family]()).eval()(images)
    grid, pooled = (after.maps[-1] - before.maps[-1]).mean((2, 3)), after.pooled - before.pooled
    expect_close(pooled, (after.prefix - before.prefix)[:, 0] if family in ("vit", "vit-reg4") else grid)


def test_vqt_asks_the_last_blocks_alone():
    host = method_host("vqt", blocks="last:1", tokens=3)
    assert list(parts_at(host)) == ["blocks.2.attn.qkv", "features"]
    assert host(torch.randn(2, 3, 32, 32), "a").pooled.shape == (2, 32 + 3 * 32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"at": "attn.qkv"}, "read at the features"),
        ({"at": "attn.q features"}, r"ask at attn.qkv, not at blocks.0.attn.q"),
        ({"at": "mlp features"}, r"ask at attn.qkv, not at blocks.0.mlp"),
    ],
)
def test_vqt_refuses_sites_where_its_queries_would_be_lost(settings, message):
    with pytest.raises(UsageError, match=message):
        method_host("vqt", **settings)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("prefix", {"tokens": 0}),
        ("e2vpt", {"tokens": 0}),
        ("e2vpt", {"key_values": 0}),
        ("e2vpt", {"prune": 1.0}),
        ("e2vpt", {"segments": 0}),
        ("vp", {"width": 0}),
        ("vqt", {"tokens": 0}),
        ("dtl", {"rank": 0}),
        ("dtl", {"start": -1}),
        ("dtl-plus", {"kernel": 0}),
    ],
)
def test_settings_out_of_range_are_refused(name, settings):
    with pytest.raises(UsageError, match=r"does not fit|hidden is"):
        build(resolve("methods", name), settings)


def trained_step(host: Host, step: int, steps: int = 4) -> bool:
    """One update as the loop makes it; whether other tensors train from it on."""
    context = Context(host, ("a",), ("a",), step=step, steps=steps)
    changed = host.routines["e2vpt"].begin_update(context)
    host.zero_grad(set_to_none=True)
    host(torch.randn(4, 3, 32, 32), "a").pooled.square().sum().backward()
    host.routines["e2vpt"].after_backward(context)
    return changed


def prompts_of(host: Host) -> list[nn.Module]:
    return [part for name, part in parts_at(host).items() if name.endswith("tokens")]


def test_e2vpt_prunes_what_the_loss_does_not_need_and_starts_again(tmp_path):
    host = method_host("e2vpt", random=False, tokens=4, prune=0.5, prune_segments=0.25, segments=4)
    prompts, images = prompts_of(host), torch.randn(2, 3, 32, 32)
    starts = [part(images).detach() for part in prompts]
    key_values = 3 * 5 * 32
    assert host.count().parts == 3 * 4 * 32 + key_values
    with torch.no_grad():
        for part in prompts:
            part.tokens.mul_(2)
            part.tokens[4:12] *= 1e-6  # the second and third token do nearly nothing through d loss / d mask
    assert [trained_step(host, step) for step in range(4)] == [False, False, True, False]
    for part, start in zip(prompts, starts, strict=True):
        assert not part.mask[1:3].any()
        masked = start.unflatten(2, (4, 8)) * part.mask[..., None]
        assert torch.equal(part(images), masked.flatten(2))
    kept = (3 * 2 * 4 - int(0.25 * 24)) * 8
    assert sum(part.tokens.numel() for part in prompts) == kept
    assert host.count().parts == kept + key_values
    host.save(tmp_path)
    again = load(tmp_path, zoo()["vit"]()).eval()
    assert again.count().parts == kept + key_values
    assert torch.equal(again(images, "a").pooled, host(images, "a").pooled)


def test_a_cut_prompt_gives_the_gradients_of_its_segments():
    host = method_host("e2vpt", random=False, tokens=4, prune=0.5, prune_segments=0.25, segments=4)
    for step in range(3):
        trained_step(host, step)
    part, seed = prompts_of(host)[0], torch.randn(1, 4, 32)
    (gradient,) = torch.autograd.grad((part(seed) * seed).sum(), part.tokens)
    assert torch.equal(gradient, seed.unflatten(2, (4, 8))[0][part.mask])


def test_e2vpt_prunes_once():
    host = method_host("e2vpt", random=False, prune=0.5)
    for step in range(3):
        trained_step(host, step)
    masks = [part.mask.clone() for part in prompts_of(host)]
    trained_step(host, 3)
    host.routines["e2vpt"].end_stage(Context(host, ("a",), ("a",)))
    assert all(torch.equal(mask, part.mask) for mask, part in zip(masks, prompts_of(host), strict=True))
    assert not all(mask.all() for mask in masks)


def test_e2vpt_prunes_at_the_end_of_a_stage_too_short_for_it():
    host = method_host("e2vpt", random=False, prune=0.5)
    assert trained_step(host, 0, steps=1) is False
    assert not any(part.cut for part in prompts_of(host))
    host.routines["e2vpt"].end_stage(Context(host, ("a",), ("a",)))
    assert all(part.cut for part in prompts_of(host))


@pytest.mark.parametrize("frozen", [True, False])
def test_e2vpt_leaves_prompts_that_were_not_trained(frozen):
    host = method_host("e2vpt", random=False, prune=0.5)
    if frozen:
        host.freeze("shared")
    host.routines["e2vpt"].end_stage(Context(host, ("a",), ("a",)))
    assert not any(part.cut for part in prompts_of(host))


def test_e2vpt_refuses_segments_that_do_not_divide_a_token():
    with pytest.raises(NotApplicable, match="32 channels of a token into 5 segments"):
        method_host("e2vpt", prune_segments=0.5, segments=5)


@pytest.mark.parametrize("name", ["convpass", "mona", "dtl-plus", "vqt", "e2vpt", "vp"])
@pytest.mark.parametrize("size", [(32, 32), (48, 64), (24, 40)])
def test_token_grids_follow_the_images(name, size):
    torch.manual_seed(0)
    settings = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "dynamic_img_size": True}
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, reg_tokens=2, **settings)
    host = Host(plain, [(name, resolve("methods", name)())], ["a"]).eval()
    images = torch.randn(2, 3, *size)
    features = host(images, "a")
    assert features.maps[-1].shape == (2, 32, size[0] // 8, size[1] // 8)
    assert torch.isfinite(features.pooled).all()
    torch.testing.assert_close(host(images[1:], "a").pooled, features.pooled[1:], rtol=1e-4, atol=1e-5)
