"""The unified methods' equations on bare parts and a tiny ViT."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mtpeft.api import Context, Features, Head
from mtpeft.errors import NotApplicable, UsageError
from mtpeft.peft.host import Host
from mtpeft.plugins import resolve
from mtpeft.testing import zoo


class Linear(Head):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.classes, self.layer = tuple("abc"[:classes]), nn.Linear(width, classes)

    def forward(self, features: Features) -> Tensor:
        return self.layer(features.pooled)

    def extend(self, classes, info=None) -> None:
        raise NotImplementedError


def attached(name: str, family: str = "vit", **settings) -> Host:
    """A host with ``name`` on it whose parts have moved from where they start."""
    torch.manual_seed(0)
    host = Host(zoo()[family](), [(name, resolve("methods", name)(**settings))], ["a"]).eval()
    with torch.no_grad():
        for parameter in host.trainable(["a"]).values():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    host.attachments.pass_state.task = "a"
    return host


def part(host: Host, site: str):
    return next(p.part for m in host.methods.values() for p in host.parts_of(m, ["a"]) if p.site.name == site)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v


def test_mam_attends_to_its_prefixes_and_adds_its_adapter():
    host, plain, x = attached("mam", tokens=4, hidden=3, scale=2.0), zoo()["vit"]().blocks[1], torch.randn(2, 5, 32)
    prefix, adapter = part(host, "blocks.1.attn"), part(host, "blocks.1.mlp")
    q, k, v = plain.attn.qkv(x).chunk(3, -1)
    k, v = (torch.cat([t, p.expand(2, -1, -1)], 1) for t, p in ((k, prefix.keys), (v, prefix.values)))
    heads = [softmax_attention(*(t[..., h : h + 16] for t in (q, k, v))) for h in (0, 16)]
    block = host.backbone.blocks[1]
    host(torch.randn(2, 3, *host.image_size), "a")  # a pass, so that parts know the batch
    torch.testing.assert_close(block.attn(x), plain.attn.proj(torch.cat(heads, -1)))
    hidden = torch.relu(x @ adapter.down.weight.t() + adapter.down.bias)
    expected = plain.mlp(x) + 2 * (hidden @ adapter.up.weight.t() + adapter.up.bias)
    torch.testing.assert_close(block.mlp(x), expected)


@pytest.mark.parametrize("family", ["convnext", "swin"])
def test_mam_refuses_where_half_of_it_has_no_place(family):
    with pytest.raises(NotApplicable, match="mam"):
        attached("mam", family)


def test_u_tuning_adds_attention_over_what_it_learned():
    x, y = torch.randn(2, 5, 32), torch.randn(2, 5, 32)
    prefix = part(attached("u-tuning", tuner="prefix", tokens=3, scale=2.0), "blocks.0.mlp")
    torch.testing.assert_close(prefix(x, y), y + 2 * softmax_attention(x, prefix.keys, prefix.values))
    prompt = part(attached("u-tuning", tuner="prompt", tokens=3), "blocks.0.attn")
    torch.testing.assert_close(prompt(x, y), y + prompt.gain * softmax_attention(x, prompt.prompts, prompt.prompts))


@pytest.mark.parametrize("at", ["attn", "mlp", "block"])
def test_u_tuning_stands_beside_attention_mlp_or_block(at):
    host = attached("u-tuning", at=at, hidden=4)
    sites = {p.site.name for p in host.parts_of(host.methods["u-tuning"], ["a"])}
    assert sites == {f"blocks.{i}" + ("" if at == "block" else f".{at}") for i in range(3)}


def test_u_tuning_refuses_where_a_shape_changes():
    with pytest.raises(NotApplicable, match="one shape before and behind"):
        attached("u-tuning", "hiera")


def test_gist_reads_its_token_behind_the_last_block_and_draws_both_readings_together():
    host = attached("gist", weight=0.7, temperature=2.0)
    torch.manual_seed(1)
    host.add_head("a", Linear(32, 3))
    host.bind_head("a", "a")
    images, token, plain = torch.randn(4, 3, *host.image_size), part(host, "blocks.0.tokens").token, zoo()["vit"]()
    pooled = host.train()(images, "a").pooled
    with torch.no_grad():
        x = plain._pos_embed(plain.patch_embed(images))
        x = plain.norm(plain.blocks(torch.cat([x[:, :1], token.expand(4, -1, -1), x[:, 1:]], 1)))
    torch.testing.assert_close(pooled, x[:, 0])
    head = host.heads["a"].layer
    p, q = (head(x[:, i]).div(2).softmax(1) for i in (0, 1))
    expected = 0.7 * ((p * (p / q).log()).sum(1) + (q * (q / p).log()).sum(1)).mean()
    gist = host.routines["gist"]
    torch.testing.assert_close(gist.penalty(Context(host, ("a",), ("a",))), expected)
    assert gist.penalty(Context(host, ("a",), ("a",))) is None  # each batch counts once


def test_gist_weighs_tasks_of_a_mixed_batch_by_their_samples():
    torch.manual_seed(0)
    host = Host(zoo()["vit"](), [("gist", resolve("methods", "gist")(scope="task"))], ["a", "b"]).train()
    for task in ("a", "b"):
        host.add_head(task, Linear(32, 3))
        host.bind_head(task, task)
    images, gist, here = (
        torch.randn(4, 3, *host.image_size),
        host.routines["gist"],
        Context(host, ("a", "b"), ("a", "b")),
    )
    host(images, ["a", "b", "b", "b"])
    mixed = gist.penalty(here)
    host(images[:1], "a")
    apart = gist.penalty(here) / 4
    host(images[1:], "b")
    torch.testing.assert_close(mixed, apart + gist.penalty(here) * 3 / 4)


@pytest.mark.parametrize("settings", [{"blocks": "1-2"}, {"at": "tokens"}, {"at": "blocks.0.tokens features"}])
def test_gist_refuses_sites_where_its_token_would_be_lost(settings):
    with pytest.raises(UsageError, match="through every block to the features"):
        attached("gist", **settings)
