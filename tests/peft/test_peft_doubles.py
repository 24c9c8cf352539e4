"""The contracts hold for what no built-in method uses yet."""

from __future__ import annotations

import pytest
import timm
import torch
from support.broken_methods import Hoards, OwnedByNobody
from support.continual_methods import IsolatedEnsemble, PromptPool, RandomProjection
from support.doubles import DOUBLES, Accumulated, Factored, Masked, Prefixes, Queried, Stretched, Turned

import mtpeft
from mtpeft.errors import MtpeftError, NotApplicable
from mtpeft.hosts import build_head
from mtpeft.peft.host import Host
from mtpeft.testing import Case, parametrize_with_checks
from mtpeft.testing.training import train
from mtpeft.testing.zoo import zoo


@parametrize_with_checks(DOUBLES, ["vit-reg4"], slow=False)
def test_both_scopes(check):
    check()


@parametrize_with_checks([Stretched, Turned, Masked], ["convnext", "resnet"], scopes=["shared"], slow=False)
def test_convolutional_backbones(check):
    check()


def randomized(method, tasks=("a", "b", "c"), family="vit"):
    host = Host(zoo()[family](), [("double", method)], tasks).eval()
    torch.manual_seed(1)
    for owner in host.owners():
        for tensor in host.tensors(owner).values():
            if tensor.requires_grad:
                tensor.data.add_(torch.randn_like(tensor), alpha=0.1)
    return host


def test_prefix_equals_attention_over_longer_keys_and_values():
    torch.manual_seed(0)
    backbone = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2
    ).eval()
    host = Host(backbone, [("prefix", Prefixes())], ["a"]).eval()
    seen = {}
    attention = backbone.blocks[0].attn
    attention.register_forward_pre_hook(lambda m, args: seen.update(x=args[0]), prepend=True)
    attention.register_forward_hook(lambda m, args, y: seen.update(y=y))
    host(torch.randn(2, 3, 16, 16), "a")
    part = host.parts.by_owner["prefix"]["shared"]["blocks.0.attn"]
    qkv = attention.qkv
    q, k, v = torch.nn.functional.linear(seen["x"], qkv.weight, qkv.bias).chunk(3, -1)
    k, v = (torch.cat([t, rows.expand(2, -1, -1)], 1) for t, rows in ((k, part.keys), (v, part.values)))
    heads = [t.unflatten(-1, (2, 8)).transpose(1, 2) for t in (q, k, v)]
    mixed = torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    assert torch.allclose(attention.proj(mixed), seen["y"], atol=1e-6)


def test_owners_accumulate_in_order():
    host = randomized(Accumulated())
    images = torch.randn(2, 3, 32, 32)
    name = "double/blocks.0.attn.q"
    outputs = [host(images, task).pooled for task in "abc"]
    with torch.no_grad():
        host.tensors("c")[f"{name}/B"].zero_()
    assert torch.equal(host(images, "a").pooled, outputs[0])
    assert torch.equal(host(images, "b").pooled, outputs[1])
    assert not torch.equal(host(images, "c").pooled, outputs[2])
    assert torch.equal(host(images).pooled, host(images, "c").pooled)


def test_training_a_later_task_leaves_an_accumulated_owner_alone():
    host = randomized(Accumulated())
    assert all(name.startswith("b/") for name in host.trainable(["b"]))


def test_per_task_state_inside_common_is_owned_by_its_task():
    host = randomized(Factored())
    assert set(host.tensors("a")) == {"double/common/gain.copies"}
    assert "double/common/U" in host.tensors("shared")
    assert host.count().per_task == {"a": 4, "b": 4, "c": 4}
    host.remove_task("b")
    assert host.count().per_task == {"a": 4, "c": 4}


def test_per_task_state_asks_for_the_task():
    host = randomized(Factored())
    with pytest.raises(MtpeftError, match="the task in force is None") as error:
        host(torch.randn(1, 3, 32, 32))
    assert "give the task" in error.value.hint


def test_encode_widens_what_heads_are_built_for():
    host = randomized(Queried())
    features = host(torch.randn(2, 3, 32, 32), "a")
    assert features.pooled.shape == (2, host.info.pooled) == (2, 64)


def host_of(*methods, tasks=("a",)):
    return Host(zoo()["vit"](), [(type(method).__name__, method) for method in methods], tasks).eval()


def test_an_owner_that_is_neither_shared_nor_a_task_is_refused():
    with pytest.raises(MtpeftError, match='OwnedByNobody gives parts to "pool", which is neither "shared" nor a task'):
        host_of(OwnedByNobody())


@pytest.mark.parametrize("beside", [Stretched(), Stretched(scope="task"), PromptPool()])
def test_the_plain_backbone_is_asked_beside_parts_of_any_owner(beside):
    host = randomized(beside, tasks=["a"])
    images, empty = torch.randn(3, 3, 32, 32), Host(zoo()["vit"]()).eval()
    expected = empty(images).pooled
    assert torch.equal(host.plain(images).pooled, expected)
    assert not torch.equal(host(images, "a").pooled, expected)
    assert torch.equal(host.plain(images).pooled, expected)


def test_a_query_is_the_same_whatever_the_pool_is_composed_with():
    alone, composed = host_of(PromptPool()), host_of(Stretched(), PromptPool())
    images, asked = torch.randn(3, 3, 32, 32), []
    for host in (alone, composed):
        part = host.parts_of(host.methods["PromptPool"], ["a"])[0].part
        with torch.no_grad():
            part.register_forward_hook(lambda part, args, out: asked.append(part.given("query")))
            host(images, "a")
    assert torch.equal(*asked)


def test_a_memory_names_its_method_where_the_budget_does_not_suffice():
    case = Case("Hoards", Hoards(), "vit")
    host = case.host(["a"])
    with pytest.raises(MtpeftError, match="Hoards would keep 12,288 bytes of samples, and 10,000 are left"):
        train(case, host, ["a"])
    assert host.routines["Hoards"].memory.bytes == 3 * 3 * 32 * 32


@pytest.mark.parametrize("method", [RandomProjection(), IsolatedEnsemble(scope="task")])
def test_a_replaced_classifier_is_loaded_from_the_folder_alone(tmp_path, method):
    host = host_of(method, tasks=["one", "two"])
    host.add_head("group", build_head(mtpeft.head("cls", ["x", "y"]), host), group=True)
    host.heads["group"].extend(["z"], host.info)
    for task in host.tasks:
        host.bind_head(task, "group")
    for tensor in host.heads["group"].state_dict().values():
        tensor.copy_(torch.randn_like(tensor))
    host.save(tmp_path / "adapter")
    again = mtpeft.load(tmp_path / "adapter", zoo()["vit"](), {type(method).__name__: method}).eval()
    images = torch.randn(2, 3, 32, 32)
    assert again.head_of("one").classes == ("x", "y", "z")
    assert torch.equal(again.predict(images, "one"), host.predict(images, "one"))


def test_a_classifier_serves_the_types_it_accepts_alone():
    host = host_of(RandomProjection())
    with pytest.raises(NotApplicable, match="RandomProjection serves tasks of type cls, and not det"):
        build_head(mtpeft.head("det", ["x"]), host)


def test_an_owner_acts_through_what_its_parts_share():
    """The pool's parts hold nothing of their own: all they train is common."""
    assert host_of(PromptPool()).ownership.acting("a") == {"shared"}
