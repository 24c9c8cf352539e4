"""Places inside a block, and how tokens lie."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from mtpeft.errors import NotApplicable
from mtpeft.peft.host import Host
from mtpeft.peft.method import Method
from mtpeft.peft.parts import InputPart, KeyValuePart, OutputPart, TokenPart, zeros
from mtpeft.peft.route import TokenLayout
from mtpeft.peft.sites import Site
from mtpeft.testing import zoo


class Bend(InputPart):
    def __init__(self) -> None:
        super().__init__()
        self.by = zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.by * x.square()


class Seen(OutputPart):
    """Notes the shapes of what it sees."""

    shapes: tuple = ()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.shapes = (tuple(x.shape), tuple(y.shape))
        return y


class Extra(TokenPart):
    def forward(self, x: Tensor) -> Tensor:
        return x.new_ones(1, 2, x.shape[-1])


class ExtraKeys(KeyValuePart):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.new_ones(1, 2, x.shape[-1]), x.new_ones(1, 2, x.shape[-1])


@dataclass
class PartAtSite(Method):
    kind: str = "Bend"

    def part(self, site: Site):
        return {"Bend": Bend, "Seen": Seen, "Extra": Extra, "ExtraKeys": ExtraKeys}[self.kind]()


def bent(x: Tensor) -> Tensor:
    return x + 0.3 * x.square()


def bend(host: Host) -> None:
    for part in host.parts.modules():
        if isinstance(part, Bend):
            part.by.data.fill_(0.3)


def block_of(family: str, index: int):
    backbone = zoo()[family]()
    host = Host(backbone, [("m", PartAtSite(at=f"blocks.{index}.middle"))])
    bend(host)
    path = host.sites[-1].model.blocks[index]
    return host, backbone.get_submodule(path), zoo()[family]().get_submodule(path)


def test_middle_of_a_plain_block_is_the_stream_behind_attention():
    host, block, plain = block_of("vit", 1)
    x = torch.randn(2, 17, 32)
    host(torch.randn(2, 3, 32, 32))  # puts a pass of two samples in force
    m = bent(x + plain.attn(plain.norm1(x)))
    torch.testing.assert_close(block(x), m + plain.mlp(plain.norm2(m)))


def test_middle_of_a_windowed_block_keeps_the_grid():
    host, block, plain = block_of("swin", 0)
    x = torch.randn(2, 8, 8, 16)
    host(torch.randn(2, 3, 32, 32))
    m = bent(x + plain._attn(plain.norm1(x)))
    torch.testing.assert_close(block(x), m + plain.mlp(plain.norm2(m)))


def test_middle_of_a_block_with_norms_behind_is_what_enters_the_mlp():
    host, block, plain = block_of("swinv2", 1)
    x = torch.randn(2, 8, 8, 16)
    host(torch.randn(2, 3, 32, 32))
    m = bent(x + plain.norm1(plain._attn(x)))
    torch.testing.assert_close(block(x), m + plain.norm2(plain.mlp(m)))


def broken(host: Host) -> None:
    """A pass that ends in an error behind the middle of a block."""

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    handle = host.backbone.blocks[1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        host(torch.ones(3, 3, *host.image_size), "a")
    handle.remove()


def checkpointed(host: Host) -> None:
    """A recomputed block, which stops where its last needed tensor is there."""
    host.checkpointing()
    host(torch.ones(3, 3, *host.image_size), "a").pooled.sum().backward()
    host.checkpointing(False)


@pytest.mark.parametrize("interrupt", [broken, checkpointed])
def test_what_an_interrupted_pass_left_in_the_middle_reaches_no_other(interrupt):
    host = Host(zoo()["vit"](), [("m", PartAtSite(at="middle", scope="task"))], ["a"]).eval()
    bend(host)
    images = torch.randn(2, 3, *host.image_size)
    expected = host(images).pooled
    interrupt(host)
    assert torch.equal(host(images).pooled, expected)


def test_middle_takes_input_parts_only():
    with pytest.raises(NotApplicable, match="place in the stream"):
        Host(zoo()["vit"](), [("m", PartAtSite(at="middle", kind="Seen"))])


@pytest.mark.parametrize(("where", "kind"), [("tokens", "Extra"), ("attn", "ExtraKeys")])
def test_output_parts_see_no_extra_tokens_of_others(where, kind):
    at = "blocks.0.attn" if where == "attn" else "blocks.0"
    host = Host(zoo()["vit"](), [("extra", PartAtSite(at=where, kind=kind)), ("seen", PartAtSite(at=at, kind="Seen"))])
    host(torch.zeros(3, 3, 32, 32))
    (seen,) = [part for part in host.parts.modules() if isinstance(part, Seen)]
    assert seen.shapes == ((3, 17, 32), (3, 17, 32))


def test_middle_and_extra_tokens_compose():
    host = Host(zoo()["vit"](), [("extra", PartAtSite(at="tokens", kind="Extra")), ("bend", PartAtSite(at="middle"))])
    images = torch.randn(2, 3, 32, 32)
    before = host(images).pooled
    bend(host)
    after = host(images)
    assert after.maps[-1].shape == (2, 32, 4, 4)
    assert not torch.allclose(before, after.pooled)


def test_layout_counts_extra_tokens_before_the_grid():
    assert TokenLayout(1, 4, 6, (32, 48)).grid(30) == (6, 4, 6)


def test_layout_without_a_grid_takes_the_proportions_of_the_images():
    assert TokenLayout(image=(32, 64)).grid(8) == (0, 2, 4)
    with pytest.raises(NotApplicable, match="7 tokens of a 32 x 64 image"):
        TokenLayout(image=(32, 64)).grid(7)


@pytest.mark.parametrize("mode", [True, False])
def test_attaching_keeps_the_backbones_mode(mode):
    host = Host(zoo()["vit"]().train(mode), [("m", PartAtSite(at="middle"))], ["a"])
    assert host.training is host.backbone.training is mode


def test_sites_say_where_the_shape_stays():
    host = Host(zoo()["hiera"]())
    keeps = {site.name: site.keeps_shape for site in host.sites}
    assert keeps["blocks.0.attn"]
    assert keeps["blocks.1.mlp"]
    assert not keeps["blocks.1.attn"]  # pools its queries into a wider stage
