"""Methods that look at data first: what they choose, that they choose once, and that it is saved."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mtpeft import load
from mtpeft.api import Context, MtpeftError, NotApplicable, UsageError
from mtpeft.peft.host import Host
from mtpeft.plugins import resolve
from mtpeft.testing import zoo
from mtpeft_plugins.partial.gps import SparseRows, contrastive
from mtpeft_plugins.partial.spt import decide


def make(name: str, tasks=("a",), **settings) -> Host:
    torch.manual_seed(0)
    return Host(zoo()["vit"](), [(name, resolve("methods", name)(**settings))], tasks).eval()


def context(host: Host, tasks=("a",), seed: int = 0) -> Context:
    """Two batches of six images of two classes for each task, and a loss on the pooled features."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        task: [torch.randn(6, 3, *host.image_size, generator=generator) + number for _ in range(2)]
        for number, task in enumerate(tasks)
    }
    targets = [{"label": torch.tensor(i % 2)} for i in range(6)]

    def loss(task: str, images: Tensor, targets: list[Any]) -> Tensor:
        return host(images, task).pooled[:, 0].square().sum()

    context = Context(host, tasks, tasks, loss=loss)
    context.batches = lambda: ((task, images, targets) for task in tasks for images in drawn[task])
    return context


def only(host: Host, site: str) -> Any:
    method = next(iter(host.methods.values()))
    return next(p.part for p in host.parts_of(method, host.tasks) if p.site.name == site)


def test_a_context_without_a_loss_says_so():
    host = make("spt")
    here = context(host)
    with pytest.raises(MtpeftError, match="its context has none") as error:
        host.routines["spt"].calibrate(Context(host, ("a",), ("a",), batches=here.batches))
    assert "give Context a loss" in error.value.hint


def test_eva_starts_from_the_principal_directions_of_the_inputs():
    host = make("lora", rank=3, init="eva", at="mlp.fc1")
    plain, seen = zoo()["vit"](), []
    plain.blocks[1].mlp.fc1.register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(0, 1)))
    here = context(host)
    with torch.no_grad():
        for _, images, _ in here.batches():
            plain.forward_features(images)
    host.routines["lora"].calibrate(here)
    inputs = torch.cat(seen)
    directions = torch.linalg.svd(inputs - inputs.mean(0), full_matrices=False)[2][:3]
    cosines = (only(host, "blocks.1.mlp.fc1").A * directions).sum(1).abs()
    torch.testing.assert_close(cosines, torch.ones(3), atol=1e-4, rtol=0)
    assert not only(host, "blocks.1.mlp.fc1").B.any()


def test_eva_refuses_a_rank_that_the_inputs_do_not_have():
    with pytest.raises(UsageError, match='init = "eva" takes 64 directions of the 32 inputs') as error:
        make("lora", rank=64, init="eva")
    assert "at most 32" in error.value.hint


@pytest.mark.parametrize(("settings", "who"), [({"dropout": 0.1}, "dropout"), ({"init": "eva"}, "EVA")])
def test_what_needs_an_input_is_refused_by_name_where_there_is_none(settings, who):
    with pytest.raises(NotApplicable, match=f"^{who} takes the input of blocks.0.attn.q, which is no linear layer"):
        Host(zoo()["beit"](), [("lora", resolve("methods", "lora")(**settings))], ["a"])


@pytest.mark.parametrize(("name", "settings"), [("gps", {}), ("spt", {}), ("lora", {"init": "eva"})])
def test_a_frozen_owner_is_left_as_it_is(name, settings):
    host = make(name, ("a", "b"), scope="task", **settings)
    host.freeze("b")
    before = {key: tensor.clone() for key, tensor in host.tensors("b").items()}
    host.routines[name].calibrate(context(host, ("a", "b")))
    after = host.tensors("b")
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert host.trainable(["a", "b"]).keys() == host.trainable(["a"]).keys()
    assert host.tensors("a")[f"{name}/common/done"]


def test_gps_keeps_its_entries_where_no_batch_shows_a_class_twice():
    host = make("gps")
    before = only(host, "blocks.0.mlp.fc1").columns.clone()
    here = context(host)
    pairs = list(here.batches())
    here.batches = lambda: ((task, images[:1], targets[:1]) for task, images, targets in pairs)
    host.routines["gps"].calibrate(here)
    assert torch.equal(only(host, "blocks.0.mlp.fc1").columns, before)


def test_gps_compares_the_images_that_have_a_label():
    chosen = []
    for start, first in ((1, []), (0, [{}])):
        host = make("gps")
        here = context(host)
        batches = [(task, images[start:], first + targets[1:]) for task, images, targets in here.batches()]
        here.batches = lambda batches=batches: iter(batches)
        host.routines["gps"].calibrate(here)
        chosen.append(only(host, "blocks.0.mlp.fc1").columns)
    assert torch.equal(*chosen)


def test_the_contrastive_loss_is_that_of_its_equation():
    features, labels = torch.randn(5, 4), torch.tensor([0, 1, 0, 0, 2])
    unit, terms = F.normalize(features, dim=1), []
    for i in (0, 2, 3):
        others = [a for a in range(5) if a != i]
        below = sum(math.exp(unit[i] @ unit[a] / 0.1) for a in others)
        positive = [a for a in others if labels[a] == 0]
        terms.append(-sum(math.log(math.exp(unit[i] @ unit[p] / 0.1) / below) for p in positive) / len(positive))
    assert contrastive(features, labels).item() == pytest.approx(sum(terms) / 3, rel=1e-4)
    assert contrastive(features[:2], torch.tensor([0, 1])).item() == 0


def test_gps_trains_the_entries_with_the_largest_gradient_of_each_row():
    host = make("gps", k=2)
    here, loss = (
        context(host),
        lambda task, images, targets: contrastive(
            host(images, task).pooled, torch.stack([t["label"] for t in targets])
        ),
    )
    module = host.attachments.model.modules["blocks.0.mlp.fc2"]
    original = module.parametrizations.weight.original
    original.requires_grad_()
    total = sum(torch.autograd.grad(loss(*batch), original)[0] for batch in here.batches())
    original.requires_grad_(False)
    host.routines["gps"].calibrate(here)
    part = only(host, "blocks.0.mlp.fc2")
    expected = total.abs().topk(2).indices.sort(1).values
    assert torch.equal(part.columns.long().sort(1).values, expected)
    assert not original.requires_grad
    with torch.no_grad():
        part.values.fill_(1.0)
    change = host.merged_state("a")["blocks.0.mlp.fc2.weight"] - original
    assert torch.equal(change.round().bool().sum(1), torch.full((32,), 2))


def test_gps_chooses_once_for_each_owner_by_its_own_tasks():
    host = make("gps", ("a", "b"), scope="task")
    gps, site = host.routines["gps"], "blocks.2.mlp.fc1"

    def columns() -> list[Tensor]:
        parts = {p.owner: p.part for p in host.parts_of(host.methods["gps"], ["a", "b"]) if p.site.name == site}
        return [parts[owner].columns.clone() for owner in ("a", "b")]

    first = columns()
    gps.calibrate(context(host, ("a",)))
    second = columns()
    gps.calibrate(context(host, ("a", "b"), seed=5))
    third = columns()
    assert not torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert torch.equal(second[0], third[0]) and not torch.equal(second[1], third[1])


def test_gps_before_data_takes_the_largest_weights():
    host = make("gps", k=1)
    weight = zoo()["vit"]().blocks[0].mlp.fc1.weight
    assert torch.equal(only(host, "blocks.0.mlp.fc1").columns.long(), weight.abs().argmax(1, keepdim=True))
    assert isinstance(only(host, "patch_embed"), SparseRows)


def test_spt_decides_by_density_within_its_budget():
    scores = {"dense": torch.tensor([[9.0, 8.0], [7.0, 6.0]]), "thin": torch.tensor([[5.0, 0.1], [0.2, 4.0]])}
    found = decide(scores, {"dense": 2, "thin": 4}, budget=4, threshold=0.5)
    assert found.modules == {"dense"}  # two of four are spent on it; all of the top four lie in it
    assert [len(found.weights[name]) for name in scores] == [0, 0]
    found = decide(scores, {"dense": 3, "thin": 9}, budget=6, threshold=0.5)
    assert found.modules == {"dense"}
    assert found.weights["thin"].tolist() == [0, 3]  # flat places of 5 and 4
    assert decide(scores, {"dense": 3, "thin": 9}, budget=6, threshold=2.0).modules == set()


@pytest.mark.parametrize("form", ["lora", "adapter"])
def test_spt_keeps_to_its_budget_and_is_saved_with_its_structure(form, tmp_path):
    host = make("spt", form=form, budget=4000, hidden=2, threshold=1.5)
    before = set(host.tensors("shared"))
    host.routines["spt"].calibrate(context(host))
    names = set(host.tensors("shared"))
    kinds = {name.rsplit("/", 1)[1] for name in host.trainable(["a"])}
    assert names != before and "values" in kinds and len(kinds) > 1
    assert 1000 < host.count().parts <= 4000
    with torch.no_grad():
        for parameter in host.trainable(["a"]).values():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    host.save(tmp_path)
    again = load(tmp_path, zoo()["vit"]()).eval()
    images = torch.randn(2, 3, *host.image_size)
    assert set(again.tensors("shared")) == names
    assert torch.equal(again(images, "a").pooled, host(images, "a").pooled)
    assert set(again.trainable(["a"])) == set(host.trainable(["a"]))


def test_spt_puts_a_bottleneck_behind_what_a_dense_matrix_gives():
    host = make("spt", form="adapter", budget=100_000, hidden=2, threshold=1e-3)
    layer, seen = host.backbone.blocks[1].mlp.fc2, {}
    parts = {p.site.name: p.part for p in host.parts_of(host.methods["spt"], ["a"])}
    own = parts["blocks.1.mlp.fc2"]
    torch.nn.init.normal_(own.up.weight)
    layer.register_forward_hook(lambda module, args, y: seen.update(x=args[0], y=y))
    host(torch.randn(2, 3, *host.image_size), "a")
    y = F.linear(seen["x"], layer.weight, layer.bias)
    expected = y + F.linear(F.gelu(F.linear(y, own.down.weight, own.down.bias)), own.up.weight, own.up.bias)
    torch.testing.assert_close(seen["y"], expected)


def test_spt_runs_where_only_some_matrices_get_a_module():
    host = make("spt", at="linear", budget=3000)
    parts = [placed.part for placed in host.parts_of(host.methods["spt"], ["a"])]
    assert 0 < sum(part.A is None for part in parts) < len(parts)
    images = torch.randn(2, 3, *host.image_size)
    assert torch.equal(host(images, "a").pooled, Host(zoo()["vit"]()).eval()(images).pooled)


def test_spt_scores_weights_by_their_summed_squared_gradients():
    host = make("spt", budget=50, threshold=1e9)  # no module is ever dense enough
    here = context(host)
    scores = {}
    for site in only(host, "blocks.0.attn.qkv").common.sites:
        original = site.model.original(site.path, "weight").requires_grad_()
        each = [torch.autograd.grad(here.loss(*batch), original)[0] for batch in here.batches()]
        scores[site.name] = sum(gradient.square() for gradient in each)
        original.requires_grad_(False)
    host.routines["spt"].calibrate(here)
    cut = torch.cat([score.flatten() for score in scores.values()]).topk(50).values[-1]
    for name, score in scores.items():
        places = only(host, f"{name}.weight").places
        expected = (score.flatten() >= cut).nonzero().flatten()
        assert ([] if places is None else places.tolist()) == expected.tolist()
