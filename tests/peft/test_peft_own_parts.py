"""What a method can see of its own parts, and where the rows of a fused projection are no site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from mtpeft.api import Declarations, Method, Site, TokenPart, WeightPart
from mtpeft.errors import NotApplicable, UsageError
from mtpeft.peft.find_sites import find_sites
from mtpeft.peft.host import Host
from mtpeft.plugins import resolve
from mtpeft.testing import zoo


def test_a_method_finds_the_parts_that_act_for_some_tasks_once_each():
    own, other = (resolve("methods", name)(scope=scope) for name, scope in (("lora", "task"), ("ia3", "shared")))
    host = Host(zoo()["vit"](), [("own", own), ("other", other)], ["a", "b", "c"])
    found = host.parts_of(own, ["a", "b"])
    assert {placed.owner for placed in found} == {"a", "b"}
    assert len(found) == len({id(placed.part) for placed in found}) == 2 * 3 * 2  # tasks, blocks, q and v
    assert {placed.owner for placed in host.parts_of(other, ["a", "b"])} == {"shared"}
    assert len(host.parts_of(other, ["a", "b"])) == 3 * 3


def test_rows_that_take_turns_head_by_head_are_no_query_site():
    names = {site.name for site in find_sites(zoo()["maxvit"]())}
    assert any(name.endswith("qkv") for name in names)
    assert not any(name.endswith((".q", ".k", ".v")) for name in names)


def test_a_merged_state_has_timms_keys_where_a_bias_is_no_saved_buffer():
    backbone = zoo()["beit"]()  # its key bias is a buffer that timm does not save
    host = Host(backbone, [("ia3", resolve("methods", "ia3")())], ["a"])
    merged = host.merged_state("a")
    host.detach()
    assert set(merged) == set(backbone.state_dict())


class Rows(WeightPart):
    """Shifts the first ``n`` rows of a weight; data decides ``n``."""

    def __init__(self) -> None:
        super().__init__()
        self.hold(2)

    def hold(self, count: int) -> None:
        self.shift = nn.Parameter(torch.zeros(count)) if count else None

    def fit(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.hold(shapes["shift"][0] if "shift" in shapes else 0)

    def forward(self, weight: Tensor) -> Tensor:
        count = 0 if self.shift is None else len(self.shift)
        return torch.cat([weight[:count] + self.shift[:, None], weight[count:]]) if count else weight


@dataclass
class Shifted(Method):
    declares = Declarations(category="addition")
    at: str = "mlp.fc1"

    def part(self, site: Site) -> WeightPart:
        return Rows()


def test_parts_make_room_for_what_data_decided_before_it_is_loaded(tmp_path):
    def host() -> Host:
        return Host(zoo()["vit"](), [("rows", Shifted())], ["a"]).eval()

    saved, loaded = host(), host()
    for count, placed in zip((5, 0, 2), saved.parts_of(saved.methods["rows"], ["a"]), strict=True):
        placed.part.hold(count)
    with torch.no_grad():
        for parameter in saved.trainable(["a"]).values():
            parameter.normal_()
    saved.save(tmp_path)
    loaded.load(tmp_path)
    images = torch.randn(2, 3, *saved.image_size)
    assert [len(p) for p in loaded.trainable(["a"]).values()] == [5, 2]
    assert torch.equal(loaded(images, "a").pooled, saved(images, "a").pooled)


def test_parts_that_made_room_stay_frozen_with_their_owner(tmp_path):
    host = Host(zoo()["vit"](), [("rows", Shifted())], ["a"])
    host.freeze("shared")
    host.save(tmp_path)
    again = Host(zoo()["vit"](), [("rows", Shifted())], ["a"])
    again.load(tmp_path)
    assert again.frozen == {"shared"} and not again.trainable(["a"])
    assert not any(parameter.requires_grad for parameter in again.parameters())


class Counted(TokenPart):
    """As many tokens as it is told; keeps what the block made of them."""

    def __init__(self, width: int, count: int, carry: bool) -> None:
        super().__init__()
        self.tokens, self.carry = nn.Parameter(torch.randn(1, count, width)), carry

    def forward(self, x: Tensor) -> Tensor:
        return self.tokens

    def returned(self, tokens: Tensor) -> None:
        self.scratch["back"] = self.__dict__["back"] = tokens


@dataclass
class Tokens(Method):
    declares = Declarations(category="addition", identity_at_init=False)
    at: str = "blocks.0.tokens"
    count: int = 2
    carry: bool = False

    def part(self, site: Site) -> TokenPart:
        return Counted(site.width, self.count, self.carry)


def test_token_parts_get_back_what_the_block_made_of_their_tokens():
    torch.manual_seed(0)
    methods = [("cut", Tokens(count=3)), ("carried", Tokens(count=2, carry=True, scope="task"))]
    host, plain = Host(zoo()["vit"](), methods, ["a", "b"]).eval(), zoo()["vit"]()
    images = torch.randn(3, 3, *host.image_size)
    with torch.no_grad():
        host(images, ["a", "b", "b"])
        parts = {(p.method, p.owner): p.part for m in host.methods.values() for p in host.parts_of(m, ["a", "b"])}
        x = plain._pos_embed(plain.patch_embed(images[1:]))
        carried, cut = (parts[key].tokens.expand(2, -1, -1) for key in (("carried", "b"), ("cut", "shared")))
        y = plain.blocks[0](torch.cat([x[:, :1], carried, cut, x[:, 1:]], 1))
    torch.testing.assert_close(parts["carried", "b"].__dict__["back"], y[:, 1:3])
    torch.testing.assert_close(parts["cut", "shared"].__dict__["back"][-2:], y[:, 3:6])


class Several(Counted):
    @property
    def added(self) -> int:
        return self.tokens.shape[1]


@dataclass
class Uneven(Tokens):
    """Task a has one token, task b three, c as many as b."""

    def part(self, site: Site) -> TokenPart:
        return Several(site.width, {"a": 1}.get(site.owner, 3), self.carry)


@pytest.mark.parametrize("carry", [False, True])
def test_tasks_with_different_numbers_of_tokens_take_passes_of_their_own(carry):
    torch.manual_seed(0)
    host = Host(zoo()["vit"](), [("uneven", Uneven(scope="task", carry=carry))], ["a", "b", "c"]).eval()
    images, names = torch.randn(4, 3, *host.image_size), ["b", "a", "c", "b"]
    with torch.no_grad():
        mixed = host(images, names).pooled
        for row, name in enumerate(names):
            torch.testing.assert_close(mixed[row : row + 1], host(images[row : row + 1], name).pooled)
    assert host.attachments.can_share_pass(
        ["b", "c"], per_task_gradients=False
    ) and not host.attachments.can_share_pass(["a", "b"], per_task_gradients=False)


@pytest.mark.parametrize(("family", "kept"), [("vit", 0), ("vit", 1), ("resnet", 0), ("resnet", 1)])
def test_a_low_rank_part_may_have_no_rank_at_all(family, kept):
    torch.manual_seed(0)
    host = Host(zoo()[family](), [("lora", resolve("methods", "lora")())], ["a"]).eval()
    images = torch.randn(2, 3, *host.image_size)
    with torch.no_grad():
        own = host.parts_of(host.methods["lora"], ["a"])
        for placed in own[:kept]:
            placed.part.B.normal_()
        for placed in own[kept:]:
            placed.part.A, placed.part.B = nn.Parameter(placed.part.A[:0]), nn.Parameter(placed.part.B[:, :0])
        merged = zoo()[family]()
        merged.load_state_dict(host.merged_state("a"))
        torch.testing.assert_close(host(images, "a").pooled, Host(merged).eval()(images).pooled)


def test_a_method_without_sites_here_makes_no_sense_and_a_pattern_without_sites_is_the_users():
    """The one is a cell of a table that stays empty, the other a mistake to be mended."""
    vpt = resolve("methods", "vpt-deep")
    with pytest.raises(NotApplicable):
        Host(zoo()["resnet"](), [("vpt-deep", vpt())], ["a"])
    with pytest.raises(UsageError, match="nowhere"):
        Host(zoo()["vit"](), [("vpt-deep", vpt(at="nowhere.*"))], ["a"])
