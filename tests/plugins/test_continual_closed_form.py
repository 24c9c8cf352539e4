"""Continual methods with solved heads: closed forms, order, counts, and runs that are stopped, resumed and loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from support import training_toy
from support.reader_samples import picture
from torch import Tensor
from torch.nn import functional as F

import mtpeft
from mtpeft.api import ClassMoments, ClassSums, Context, FeaturesInfo, Host, Method, resolve
from mtpeft.errors import MtpeftError, NotApplicable
from mtpeft.schedule import Batch, End
from mtpeft.training.session import Session
from mtpeft_plugins.continual.aper import Aper
from mtpeft_plugins.continual.ease import Ease, SubspacePrototypes, completed
from mtpeft_plugins.continual.fecam import Fecam, Mahalanobis, correlations, shrunk
from mtpeft_plugins.continual.ncm import Ncm
from mtpeft_plugins.continual.ranpac import Ranpac
from mtpeft_plugins.continual.simplecil import Simplecil

torch.set_num_threads(1)
CLASSES = {"a": ("ant", "bee"), "b": ("cat", "dog", "emu"), "c": ("fox", "gnu")}
EACH = 12
ORDERS = (("a", "b", "c"), ("c", "a", "b"), ("b", "c", "a"))


@pytest.fixture
def data() -> dict[str, tuple[Tensor, list[dict[str, Any]]]]:
    generator = torch.Generator().manual_seed(3)
    return {
        task: (
            torch.randn(EACH, 3, 32, 32, generator=generator, dtype=torch.float64),
            [{"label": torch.tensor(i % len(names)), "classes": names} for i in range(EACH)],
        )
        for task, names in CLASSES.items()
    }


def passes(data: Any, size: int, stage: Sequence[str], *, train: bool = True, tasks: Any = None) -> Iterator[Any]:
    """Plain passes over the data of tasks, so many images at a time."""
    assert not train
    for task in stage if tasks is None else tasks:
        images, targets = data[task]
        for start in range(0, EACH, size):
            yield task, images[start : start + size], targets[start : start + size]


def learned(method: Method, data: Any, order: Sequence[str], size: int = 5) -> Host:
    """A host in fp64 that met the tasks of one group in this order, without training anything."""
    host = Host(training_toy.tiny(), [("method", method)]).double().eval()
    for stage, task in enumerate(order):
        torch.manual_seed(7)
        host.add_task(task)
        if "group" not in host.heads:
            host.add_head("group", method.classifier(host.info, CLASSES[task]), group=True)
        else:
            host.heads["group"].extend(CLASSES[task], host.info)
        host.bind_head(task, "group")
        host.eval()
        context = Context(host, (task,), tuple(order[: stage + 1]), stage, batches=partial(passes, data, size, (task,)))
        for hook in ("begin_stage", "settle", "end_stage", "settle"):
            with torch.no_grad():
                getattr(host.routines["method"], hook)(context)
    return host


@torch.no_grad()
def logits(host: Host, images: Tensor) -> Tensor:
    """Of all classes by name, whatever order they were met in."""
    head = host.heads["group"]
    names = [name for task in CLASSES for name in CLASSES[task]]
    return host.predict(images, host.tasks[0])[:, [head.classes.index(name) for name in names]]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [1, 5, EACH])
def test_ranpac_is_joint_ridge_regression(data, order, size):
    host = learned(Ranpac(hidden=0, projection=40, ridge=0.3), data, order, size)
    images, targets = torch.cat([data[t][0] for t in CLASSES]), [t for task in CLASSES for t in data[task][1]]
    names = [name for task in CLASSES for name in CLASSES[task]]
    labels = torch.tensor([names.index(t["classes"][int(t["label"])]) for t in targets])
    h = (host.plain(images).pooled @ host.heads["group"].projection).relu()
    solution = torch.linalg.solve(h.T @ h + 0.3 * torch.eye(40).double(), h.T @ F.one_hot(labels).double())
    torch.testing.assert_close(logits(host, images), h @ solution, rtol=1e-6, atol=1e-6)


def test_ranpac_takes_the_ridge_that_serves_held_out_samples_best(data):
    host = learned(Ranpac(hidden=0, projection=40), data, ("b",))
    head, (images, targets) = host.heads["group"], data["b"]
    h, y = head.lift(host.plain(images).pooled), F.one_hot(torch.stack([t["label"] for t in targets])).double()
    held = torch.arange(EACH) % 5 == 4
    errors = {}
    for ridge in (10.0**power for power in range(-8, 9)):
        gram = h[~held].T @ h[~held] + ridge * torch.eye(40).double()
        errors[ridge] = F.mse_loss(h[held] @ torch.linalg.solve(gram, h[~held].T @ y[~held]), y[held])
    best = min(errors, key=lambda ridge: float(errors[ridge]))
    expected = torch.linalg.solve(h.T @ h + best * torch.eye(40).double(), h.T @ y).T
    torch.testing.assert_close(head.weight, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", [Ncm(), Simplecil(), Fecam()])
def test_order_and_batches_change_nothing(method, data):
    images = data["c"][0]
    first = logits(learned(method, data, ORDERS[0]), images)
    for order, size in ((ORDERS[1], 1), (ORDERS[2], EACH)):
        torch.testing.assert_close(logits(learned(method, data, order, size), images), first, rtol=1e-8, atol=1e-8)


def test_ncm_and_simplecil_by_hand(data):
    images, targets = data["a"]
    for method in (Ncm(), Simplecil(scale=2.0)):
        host = learned(method, data, ("a",))
        x, labels = host.plain(images).pooled, torch.stack([t["label"] for t in targets])
        means = torch.stack([x[labels == label].mean(0) for label in (0, 1)])
        expected = -torch.cdist(x, means).square() / 2
        if isinstance(method, Simplecil):
            expected = 2 * F.cosine_similarity(x[:, None], means, dim=-1)
        torch.testing.assert_close(host.predict(images, "a"), expected)


def test_a_class_that_was_never_seen_is_never_the_answer(data):
    host = learned(Ncm(), data, ("a",))
    host.heads["group"].extend(("later",))
    assert host.predict(data["a"][0], "a").argmax(1).max() < 2


def test_a_task_counts_once(data):
    host = learned(Ncm(), data, ("a",))
    counted = host.heads["group"].statistics.count.clone()
    context = Context(host, ("a",), ("a",), 1, batches=partial(passes, data, 5, ("a",)))
    host.routines["method"].begin_stage(context)
    host.routines["method"].settle(context)
    assert torch.equal(host.heads["group"].statistics.count, counted) and counted.sum() == EACH


def test_fecam_by_hand():
    covariance = torch.tensor([[2.0, 1.0], [1.0, 4.0]])
    torch.testing.assert_close(shrunk(covariance, 1.0, 1.0), torch.tensor([[5.0, 2.0], [2.0, 7.0]]))
    torch.testing.assert_close(shrunk(covariance, 0.5, 0.0), torch.tensor([[3.5, 1.0], [1.0, 5.5]]))
    correlation = correlations(torch.tensor([[5.0, 2.0], [2.0, 7.0]]))
    torch.testing.assert_close(correlation, torch.tensor([[1.0, 2 / 35**0.5], [2 / 35**0.5, 1.0]]))
    assert torch.equal(correlations(torch.zeros(3, 3)), torch.eye(3))


def test_fecam_measures_in_each_class_of_its_own():
    head = Mahalanobis(FeaturesInfo(3, (), (), 0, (8, 8)), ("one", "two"), 1.0, 1.0).double().eval()
    x, labels = F.normalize(torch.randn(20, 3, dtype=torch.float64), dim=-1), torch.arange(20) % 2
    head.statistics.add(x, labels)
    head.solve(head.statistics, head.statistics)
    for label in (0, 1):
        own = x[labels == label]
        torch.testing.assert_close(head.statistics.covariance(label), own.T.cov())
        apart, matrix = x - own.mean(0), correlations(shrunk(own.T.cov(), 1.0, 1.0))
        expected = -(apart @ matrix.inverse() * apart).sum(1) / 2
        torch.testing.assert_close(head.score(3 * x)[:, label], expected)


def test_statistics_add_up_in_any_order():
    x, labels = torch.randn(9, 2, 4).double(), torch.arange(9) % 3
    whole, parts = ClassSums(3, 4).double(), ClassSums(3, 4).double()
    whole.add(x, labels)
    for rows in ([8, 1], [0, 2, 3], [7], [4, 5, 6]):
        own = parts.fresh()
        own.add(x[rows], labels[rows])
        parts.merge(own)
    torch.testing.assert_close(parts.means(), whole.means())
    torch.testing.assert_close(whole.means()[1], x[labels == 1].mean(0))
    whole.grow(1)
    assert whole.means().shape == (4, 2, 4) and not whole.means()[3].any()
    assert not ClassMoments(2, 3).covariance(0).any()


def test_ease_completes_prototypes_by_hand():
    means = torch.zeros(3, 2, 2)
    means[0, 0] = torch.tensor([1.0, 0.0])  # of the first task; never seen in the second subspace
    means[1] = torch.tensor([[2.0, 0.0], [4.0, 1.0]])
    means[2] = torch.tensor([[0.0, 3.0], [0.0, 8.0]])
    filled, own = completed(means, torch.tensor([[5, 0], [5, 5], [5, 5]]))
    near = torch.tensor([1.0, 0.0]).softmax(0)  # its cosines to the new classes, in its own subspace
    assert own.tolist() == [0, 1, 1]
    torch.testing.assert_close(filled[0, 1], near[0] * means[1, 1] + near[1] * means[2, 1])
    assert torch.equal(filled[1:], means[1:]) and torch.equal(filled[0, 0], means[0, 0])


def test_ease_weighs_other_subspaces_less():
    head = SubspacePrototypes(FeaturesInfo(2, (), (), 0, (8, 8)), ("old", "new"), 0.1, 1.0)
    head.weight, head.own, head.met = torch.randn(2, 2, 2), torch.tensor([0, 1]), torch.ones(2, dtype=torch.bool)
    x = torch.randn(4, 2, 2)
    cosines = F.cosine_similarity(x[:, None], head.weight, dim=-1)  # (B, K, T)
    expected = torch.stack([cosines[:, 0, 0] + 0.1 * cosines[:, 0, 1], cosines[:, 1, 1] + 0.1 * cosines[:, 1, 0]], 1)
    torch.testing.assert_close(head.score(x), expected)


def test_only_new_classes_compete_in_training():
    head = SubspacePrototypes(FeaturesInfo(2, (), (), 0, (8, 8)), ("old",), 0.1, 1.0)
    head.proxy = None
    head.extend(("new", "newer"))
    probabilities = head.proxy(torch.randn(5, 2), 3).softmax(1)
    assert not probabilities[:, 0].any() and bool((probabilities[:, 1:] > 0).all())
    before = head.proxy.weight.clone()
    head.extend(("newest",))
    assert head.proxy.rows.tolist() == [1, 2, 3] and torch.equal(head.proxy.weight[:2], before)


def test_counts_on_vit_base():
    with torch.device("meta"):
        backbone = timm.create_model("vit_base_patch16_224", num_classes=0)
        for method, shared, own in ((Aper(), 1_189_632, 0), (Ranpac(), 1_189_632, 0), (Ease(), 0, 1_189_632)):
            host = Host(backbone, [("method", method)], ("one", "two"))
            counts = host.count()
            assert counts.shared == shared and counts.per_task == {"one": own, "two": own}
            host.detach()
        for method in (Ncm(), Simplecil(), Fecam(), Ranpac(hidden=0)):
            host = Host(backbone, [("method", method)], ("one",))
            assert host.count().parts == 0
            host.detach()
        head = Ranpac().classifier(FeaturesInfo(768, (768,), (16,), 1, (224, 224)), ("one", "two"))
    assert head.projection.shape == (768, 10_000) and "projection" not in dict(head.named_parameters())
    assert head.statistics.gram.nbytes == 400_000_000


def test_other_types_of_task_are_refused():
    host = Host(training_toy.tiny(), [("ncm", Ncm())], ("one",))
    with pytest.raises(NotApplicable, match="ncm serves tasks of type cls, and not seg"):
        mtpeft.hosts.build_head(mtpeft.head("seg", ["sky", "sea"]), host)


def test_a_class_the_head_does_not_know_is_named(data):
    host = learned(Ncm(), data, ("a",))
    data["a"][1][0]["classes"] = ("ant", "bat")
    data["a"][1][1]["classes"] = ("ant", "bat")
    host.routines["method"].restore({})
    context = Context(host, ("a",), batches=partial(passes, data, 5, ("a",)))
    with pytest.raises(MtpeftError, match='class "bat" is in the data but not in the head'):
        host.routines["method"].settle(context)


# --- runs


@pytest.fixture
def toy_run(tmp_path, installed_plugins, monkeypatch):
    """``run(name, method)``: a configuration of six classes of pictures in three stages."""
    monkeypatch.setattr("mtpeft.files.sync", lambda path: None)
    training_toy.register()
    for label in range(6):
        for number in range(10):
            picture(tmp_path / "data" / f"class {label}" / f"{number}.png", 10 * label + number)
    settings = ("tasks.x.split=3", "tasks.x.batch_size=4", "output.save_every=1", "schedule.steps=3")

    def run(name: str, method: str) -> Any:
        small = ("methods.ranpac.projection=32",) if "ranpac" in method else ()
        tasks = f"x=cls@folder:{tmp_path / 'data'}"
        return training_toy.config(
            tmp_path / name, *settings, *small, tasks=tasks, schedule="sequential", method=method
        )

    return run


def adapter(folder: Path) -> dict[str, Tensor]:
    files = sorted((folder / "adapter").glob("*.safetensors"))
    return {f"{file.name} {name}": tensor for file in files for name, tensor in load_file(file).items()}


def interrupt(session: Session, stage: int) -> None:
    """Press Ctrl-C in front of the second batch of a stage."""
    do, at = session.loop.do, session.loop.at

    def stopping(event: Any) -> None:
        if isinstance(event, Batch) and (at.stage, at.step) == (stage, 1):
            raise KeyboardInterrupt
        do(event)

    session.loop.do = stopping
    with pytest.raises(KeyboardInterrupt):
        session.train()


@pytest.mark.parametrize("method", ["fecam", "ranpac", "aper", "ease"])
def test_a_run_resumes_in_its_second_stage_and_loads(toy_run, tmp_path, method):
    whole = Session.start(toy_run("whole", method))
    whole.train()
    interrupt(Session.start(toy_run("cut", method)), stage=1)
    Session.resume(toy_run("cut", method)).train()
    one, other = adapter(tmp_path / "whole"), adapter(tmp_path / "cut")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "cut")]
    assert results[0]["matrix"] == results[1]["matrix"]

    loaded, images = mtpeft.load(tmp_path / "whole" / "adapter", training_toy.tiny()).eval(), torch.randn(3, 3, 32, 32)
    host = whole.run.host.eval()
    with torch.no_grad():
        for task in host.tasks:
            assert torch.equal(loaded.predict(images, task), host.predict(images, task))
    declares = resolve("methods", method)().declares
    assert results[0]["costs"]["inference_passes"] == declares.inference_passes * (3 if declares.passes_per_task else 1)
    assert results[0]["costs"]["parameters"]["heads"] == {"x": 0}
    log = [json.loads(line) for line in (tmp_path / "whole" / "events.jsonl").read_text().splitlines()]
    trained = {line["stage"] for line in log if "losses" in line}
    assert trained == {"fecam": set(), "ranpac": {0}, "aper": {0}, "ease": {0, 1, 2}}[method]


def test_earlier_adapters_and_old_prototypes_stay(toy_run):
    session, kept = Session.start(toy_run("run", "ease")), {}
    do, host = session.loop.do, session.run.host

    def watching(event: Any) -> None:
        do(event)
        if isinstance(event, End):
            head = host.heads["x"] if "x" in host.heads else next(iter(host.heads.values()))
            kept[event.stage] = {name: {k: v.clone() for k, v in host.tensors(name).items()} for name in host.tasks}
            kept[event.stage]["means"] = head.statistics.means().clone()

    session.loop.do = watching
    session.train()
    for stage in (0, 1):
        for task, tensors in kept[stage].items():
            if task != "means":
                assert all(torch.equal(kept[2][task][name], tensor) for name, tensor in tensors.items())
        rows, spaces = kept[stage]["means"].shape[:2]
        assert torch.equal(kept[2]["means"][:rows, :spaces], kept[stage]["means"])
    assert host.frozen == set(host.tasks)


def test_what_trains_beside_is_counted_as_it_is_at_the_end(toy_run):
    session = Session.start(toy_run("run", "lora@shared+ranpac"))
    session.train()
    assert session.run.host.frozen == {"shared"}
