"""What a method can see of its own parts, and where the rows of a fused projection are no site."""

from __future__ import annotations

from mtpeft.peft.host import Host
from mtpeft.peft.sites import find_sites
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
