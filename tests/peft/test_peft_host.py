"""The host: tasks come and go, names are checked, nothing stays behind, and what is saved comes back."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.doubles import Queried
from torch import nn

import mtpeft
from mtpeft import files
from mtpeft.errors import MtpeftError, NotApplicable, UsageError
from mtpeft.peft.configured import as_methods
from mtpeft.peft.host import Host
from mtpeft.peft.route import Route
from mtpeft.testing.zoo import zoo


def make(method="lora@task", tasks=("a", "b"), family="vit"):
    host = Host(zoo()[family](), as_methods(method), tasks).eval()
    torch.manual_seed(0)
    for owner in host.owners():
        for tensor in host.tensors(owner).values():
            tensor.data.add_(torch.randn_like(tensor), alpha=0.1)
    return host


IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_a_task_added_later_changes_no_other():
    host = make()
    before = host(IMAGES, "a").pooled
    host.add_task("later")
    assert torch.equal(host(IMAGES, "a").pooled, before)
    assert host.count().per_task["later"] == host.count().per_task["a"] > 0


def test_a_removed_task_takes_what_it_owns_along():
    host = make()
    before, owned = host(IMAGES, "b").pooled, set(host.tensors("a"))
    host.remove_task("a")
    assert owned and not host.tensors("a")
    assert torch.equal(host(IMAGES, "b").pooled, before)
    with pytest.raises(UsageError, match='no task "a"'):
        host(IMAGES, "a")


def test_a_frozen_owner_is_not_trained():
    host = make("lora@shared+adaptformer@task")
    host.freeze("a")
    assert {name.split("/")[0] for name in host.trainable(["a", "b"])} == {"shared", "b"}
    host.freeze("shared")
    assert {name.split("/")[0] for name in host.trainable(["b"])} == {"b"}
    host.unfreeze("shared")
    assert {name.split("/")[0] for name in host.trainable(["b"])} == {"shared", "b"}


def test_only_an_owner_can_be_frozen():
    host = make()
    with pytest.raises(UsageError, match='no owner "aa"') as error:
        host.freeze("aa")
    assert 'did you mean "a"' in error.value.hint and not host.frozen


def test_a_head_bound_to_a_frozen_task_is_frozen_too():
    host = make()
    host.freeze("a")
    host.add_head("late", Logits(32))
    host.bind_head("a", "late")
    assert not any(parameter.requires_grad for parameter in host.heads["late"].parameters())
    host.bind_head("b", "late")
    assert all(parameter.requires_grad for parameter in host.heads["late"].parameters())


def test_what_never_trains_in_a_head_stays_so():
    host, head = make(), Logits(32)
    head.linear.bias.requires_grad_(False)
    host.add_head("a", head)
    host.bind_head("a", "a")
    host.freeze("a")
    host.unfreeze("a")
    host.add_task("later")
    assert head.linear.weight.requires_grad and not head.linear.bias.requires_grad


@pytest.mark.parametrize("name", ["", "a/b", "a\\b"])
def test_head_names_that_cannot_be_files_are_refused(name):
    with pytest.raises(UsageError, match="cannot name a head"):
        make().add_head(name, Logits(32))


def test_a_head_of_ones_own_is_added_and_then_read(tmp_path):
    host = make()
    host.add_head("own", Logits(32))
    host.bind_head("a", "own")
    host.save(tmp_path)
    again = mtpeft.load(tmp_path, zoo()["vit"]()).eval()
    again.add_head("own", Logits(32))
    again.load(tmp_path)
    assert torch.equal(again.predict(IMAGES, "a"), host.predict(IMAGES, "a"))


def test_a_head_must_be_added_before_it_is_bound():
    with pytest.raises(UsageError, match='no head "pets"'):
        make().bind_head("a", "pets")


@pytest.mark.parametrize("name", ["shared", "a/b", "", "-x", "two words", "a.b"])
def test_task_names_that_cannot_be_files_are_refused(name):
    with pytest.raises(UsageError, match="a task cannot be called"):
        make(tasks=[name])


@pytest.mark.parametrize(
    "name", ["cls", "mlp", "head", "items", "blocks", "weight", "A", "names", "modules", "parameters", "apply"]
)
def test_task_names_that_are_path_segments_elsewhere_are_fine(name, tmp_path):
    host = make("hydra-lora@task+lora@shared", [name, "other"])
    expected = host(IMAGES, name).pooled
    host.save(tmp_path)
    again = Host(zoo()["vit"](), as_methods("hydra-lora@task+lora@shared"), [name, "other"]).eval()
    again.load(tmp_path)
    assert torch.equal(again(IMAGES, name).pooled, expected)


def test_one_task_twice_is_refused():
    with pytest.raises(UsageError, match="two tasks"):
        make(tasks=["a", "a"])


def test_an_unknown_task_is_named_with_the_closest():
    with pytest.raises(UsageError, match='no task "pet"') as error:
        make(tasks=["pets", "cells"])(IMAGES, "pet")
    assert 'did you mean "pets"' in error.value.hint


def test_as_many_tasks_as_images():
    with pytest.raises(UsageError, match="2 tasks are given for 3 images"):
        make()(IMAGES, ["a", "b"])


@pytest.mark.parametrize("task", ["a", None, []])
def test_an_empty_batch_is_refused(task):
    with pytest.raises(UsageError, match="no images"):
        make()(IMAGES[:0], task)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_second_host_on_one_backbone_is_refused_and_changes_nothing(method):
    host = make(method)
    before = host(IMAGES, "a").pooled
    with pytest.raises(UsageError, match="has a host already"):
        Host(host.backbone, as_methods("bitfit"), ["a"])
    assert torch.equal(host(IMAGES, "a").pooled, before)
    Host(host.detach(), as_methods("bitfit"), ["a"])


def test_settings_of_an_instance_are_held_to_their_ranges_too():
    lora = type(as_methods("lora")[0][1])
    with pytest.raises(UsageError, match=r"lora\.rank = 0 does not fit") as caught:
        Host(zoo()["vit"](), [("lora", lora(rank=0))], ["a"])
    assert caught.value.hint == "lora.rank takes a whole number of at least 1; the default is 8"
    with pytest.raises(UsageError, match=r'first\.scope = "all" does not fit'):
        mtpeft.adapt(zoo()["vit"](), [("first", lora(scope="all"))], ["a"])


def test_two_methods_that_encode_are_refused():
    with pytest.raises(NotApplicable, match="one and two each say how images become features"):
        Host(zoo()["vit"](), [("one", Queried()), ("two", Queried())], ["a"])


@pytest.mark.parametrize("methods", ["dora+hydra-lora", "hydra-lora@task+ssf@task"])
def test_a_part_that_looks_at_the_input_of_a_weight_that_others_change_is_refused(methods):
    with pytest.raises(NotApplicable, match="hydra-lora looks at the input"):
        make(methods)
    make("hydra-lora+lora")


def test_a_pattern_that_matches_nothing_lists_what_there_is():
    with pytest.raises(UsageError, match=r"attn\.queries") as error:
        Host(zoo()["vit"](), [("lora", as_methods("lora")[0][1].__class__(at="attn.queries"))], ["a"])
    assert "attn.q" in error.value.hint


def test_a_refusal_leaves_the_backbone_as_it_was():
    backbone = zoo()["resnet"]().requires_grad_(True)
    before = copy.deepcopy(backbone.state_dict())
    with pytest.raises((NotApplicable, UsageError)):
        Host(backbone, as_methods("vpt-deep"), ["a"])
    assert all(torch.equal(before[k], v) for k, v in backbone.state_dict().items())
    assert all(p.requires_grad for p in backbone.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.modules())


def test_detach_gives_back_order_classes_and_flags():
    backbone = zoo()["beit"]()
    backbone.blocks[0].attn.proj.weight.requires_grad_(False)
    flags = {n: p.requires_grad for n, p in backbone.named_parameters()}
    classes = [type(m) for m in backbone.modules()]
    host = Host(backbone, as_methods("ssf+lora+adaptformer"), ["a"])
    assert not any(p.requires_grad for p in backbone.parameters())
    assert host.detach() is backbone
    assert {n: p.requires_grad for n, p in backbone.named_parameters()} == flags
    assert list(dict(backbone.named_parameters())) == list(flags)
    assert [type(m) for m in backbone.modules()] == classes


def test_a_merged_host_runs_only_what_it_was_merged_for():
    host = make()
    host.merge("a")
    with pytest.raises(UsageError, match="merged for 'a'"):
        host(IMAGES, "b")
    with pytest.raises(UsageError, match="merged already"):
        host.merge("a")
    with pytest.raises(UsageError, match="added to a merged host"):
        host.add_task("later")
    host.unmerge()
    host(IMAGES, "b")


def test_several_affine_parts_of_one_module_fold_in_the_order_they_run():
    (_, first), (_, second) = as_methods("repadapter@shared+repadapter@shared")
    host = Host(zoo()["vit"](), [("first", first), ("second", second)], ["a"]).eval()
    torch.manual_seed(0)
    for tensor in host.tensors("shared").values():
        tensor.data.add_(torch.randn_like(tensor), alpha=0.3)
    before = host(IMAGES, "a").pooled
    host.merge("a")
    torch.testing.assert_close(host(IMAGES, "a").pooled, before, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_merged_says_why():
    with pytest.raises(NotApplicable, match="depends on the input"):
        make("hydra-lora").merge("a")
    with pytest.raises(NotApplicable, match="no function of a weight"):
        make("vpt-deep").merge("a")


@pytest.mark.parametrize("method", ["prefix", "dtl", "gist", "lora@task+mona"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_host_is_copied_between_a_pass_and_the_next(method, checkpointing):
    host = make(method)
    host.checkpointing(checkpointing)
    features = host(IMAGES, "a").pooled
    features.square().sum().backward()
    assert torch.equal(copy.deepcopy(host)(IMAGES, "a").pooled, features)


@pytest.mark.parametrize("method", ["dora", "bitfit"])
def test_a_copy_changes_without_the_original(method):
    host = make(method)
    expected, twin = host(IMAGES, "a").pooled, copy.deepcopy(host)
    twin.add_task("later")
    assert torch.equal(host(IMAGES, "a").pooled, expected)
    host.add_task("other")
    twin.detach()
    assert torch.equal(host(IMAGES, "a").pooled, expected)
    assert type(twin.backbone.blocks[0].mlp.fc1) is nn.Linear


def test_batch_norm_statistics_stay_frozen_in_training():
    host = make("lora", family="resnet").train()
    before = {n: b.clone() for n, b in host.backbone.named_buffers()}
    host(torch.randn(4, 3, 64, 64), "a").pooled.sum().backward()
    assert all(torch.equal(before[n], b) for n, b in host.backbone.named_buffers())


def test_parts_in_the_last_blocks_ask_for_no_gradient_before_them():
    lora = type(as_methods("lora")[0][1])(blocks="last:1")
    host = Host(zoo()["vit"](), [("lora", lora)], ["a"])
    seen = []
    for block in host.backbone.blocks:
        block.register_forward_hook(lambda m, args, y: seen.append(y.requires_grad))
    host(IMAGES, "a")
    assert seen == [False, False, True]


def test_a_side_network_asks_for_no_gradient_in_the_backbone():
    host = make("lst")
    kept = []
    for block in host.backbone.blocks:
        block.register_forward_hook(lambda m, args, y: kept.append(y.requires_grad))
    assert host(IMAGES, "a").pooled.requires_grad
    assert not any(kept)


@given(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=12))
def test_sorted_routes_cover_the_batch_in_whole_segments(tasks):
    route, order = Route.sorted(tasks)
    assert sorted(order) == list(range(len(tasks)))
    rebuilt = [s.task for s in route.segments for _ in range(s.start, s.stop)]
    assert rebuilt == [tasks[i] for i in order]
    assert len({s.task for s in route.segments}) == len(route.segments)


class Logits(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, 2)

    def forward(self, features):
        return self.linear(features.pooled)


def test_heads_are_shared_by_those_bound_to_them_and_removed_with_the_last():
    host = make()
    host.add_head("both", Logits(host.info.pooled))
    host.bind_head("a", "both")
    host.bind_head("b", "both")
    assert host.predict(IMAGES, "a").shape == (3, 2)
    host.remove_task("a")
    assert "both" in host.heads
    host.remove_task("b")
    assert "both" not in host.heads


def test_a_task_without_head_says_so():
    with pytest.raises(UsageError, match='task "a" has no head'):
        make().predict(IMAGES, "a")


def saved(tmp_path, method="lora@task"):
    host = make(method)
    host.save(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_another_backbone_is_refused(tmp_path):
    folder = saved(tmp_path)
    other = zoo()["vit"]()
    other.norm.bias.data += 1
    with pytest.raises(MtpeftError, match="with other weights"):
        mtpeft.load(folder, other)


def test_another_method_is_refused(tmp_path):
    with pytest.raises(MtpeftError, match="holds the methods lora"):
        Host(zoo()["vit"](), as_methods("dora"), ["a"]).load(saved(tmp_path))


def test_other_settings_are_refused_and_nothing_is_changed(tmp_path):
    folder = saved(tmp_path)
    lora = type(as_methods("lora")[0][1])(scope="task", rank=3)
    host = Host(zoo()["vit"](), [("lora", lora)], ["a", "b"])
    before = {k: t.clone() for k, t in host.tensors("a").items()}
    with pytest.raises(MtpeftError, match=r"trained with lora\.rank = 8, and this host has 3"):
        host.load(folder)
    assert all(torch.equal(before[k], t) for k, t in host.tensors("a").items())


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_file_is_named(tmp_path, damage):
    folder = saved(tmp_path)
    file = folder / "task.b.safetensors"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-50])
    else:
        file.unlink()
    backbone = zoo()["vit"]()
    with pytest.raises(MtpeftError, match=r"task\.b\.safetensors") as error:
        mtpeft.load(folder, backbone)
    assert error.value.hint
    Host(backbone, as_methods("lora"), ["a"])  # nothing of the host that failed is left on it


def test_a_head_that_cannot_be_built_leaves_the_backbone_free():
    backbone = zoo()["vit"]()
    with pytest.raises(UsageError):
        mtpeft.adapt(backbone, "lora", {"a": mtpeft.head("no-such-type", ["x"])})
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    Host(backbone, as_methods("lora"), ["a"])


@pytest.mark.parametrize("text", ["", "{", '{"format": 99}'])
def test_a_damaged_description_is_named(tmp_path, text):
    folder = saved(tmp_path)
    (folder / "adapter.json").write_text(text)
    with pytest.raises(MtpeftError, match=r"adapter\.json"):
        mtpeft.load(folder, zoo()["vit"]())


@pytest.mark.parametrize("why", ["rank", "file"])
def test_a_refused_folder_leaves_no_task_behind(tmp_path, why):
    make("lora@task", ["a", "later"]).save(tmp_path)
    if why == "file":
        (tmp_path / "task.later.safetensors").write_bytes(b"")
    ((name, lora),) = as_methods("lora@task")
    host = Host(zoo()["vit"](), [(name, replace(lora, rank=4) if why == "rank" else lora)], ["a"])
    before = {name: tensor.clone() for name, tensor in host.tensors("a").items()}
    with pytest.raises(MtpeftError):
        host.load(tmp_path)
    assert host.tasks == ["a"] and not host.tensors("later")
    assert all(torch.equal(tensor, before[name]) for name, tensor in host.tensors("a").items())


def test_a_plugin_that_is_gone_is_named(tmp_path):
    folder = saved(tmp_path)
    description = json.loads((folder / "adapter.json").read_text())
    description["methods"][0] |= {"id": "gone", "package": "mtpeft-gone", "version": "1.2"}
    (folder / "adapter.json").write_text(json.dumps(files.sealed(description)))
    with pytest.raises(
        MtpeftError, match=r'needs the method "gone" of mtpeft-gone 1\.2, which is not installed'
    ) as error:
        mtpeft.load(folder, zoo()["vit"]())
    assert "pip install mtpeft-gone" in error.value.hint


def test_a_bias_that_one_method_trains_and_another_changes_with_its_weight():
    host = make("bitfit+ssf", tasks=["a"])
    expected = host(IMAGES, "a").pooled
    plain = zoo()["vit"]()
    plain.load_state_dict(host.merged_state("a"))
    assert torch.allclose(plain(IMAGES), expected, atol=1e-5)
    ssf, bitfit = (host.tensors("shared")[n] for n in ("ssf/final_norm/gamma", "bitfit/final_norm.bias/value"))
    beta = host.tensors("shared")["ssf/final_norm/beta"]
    assert torch.allclose(host.backbone.norm.bias, ssf * bitfit + beta)
