"""Checks of a task type: its data, transform, head, loss, decoding and metric."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from mtpeft.backbone.features import Features, FeaturesInfo, ImageConfig
from mtpeft.errors import MtpeftError
from mtpeft.plugins import resolve
from mtpeft.settings import build
from mtpeft.task import SPLITS, Dataset, Head, Metric, Sample, Score, Split, Task
from mtpeft.testing.case import CheckFailed, difference, tensors

IMAGE = ImageConfig((64, 64), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
INFOS = {
    "one stride": FeaturesInfo(24, (24,), (8,), 1, (64, 64)),
    "one stride, no prefix": FeaturesInfo(16, (16,), (16,), 0, (64, 64)),
    "several strides": FeaturesInfo(40, (8, 16, 24, 40), (4, 8, 16, 32), 0, (64, 64)),
}
SHARDS: dict[str, list[list[int]]] = {
    "two shards": [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]],
    "an empty one first": [[], list(range(10))],
    "an empty one last": [list(range(10)), []],
    "ten, backwards": [[index] for index in reversed(range(10))],
}
Target = dict[str, Any]


@dataclass
class TaskCase:
    """A configured task, with what its checks read from it."""

    name: str
    task: Task
    check: str = ""
    data: dict[str, Dataset] = field(default_factory=dict)

    def expect(self, condition: bool, text: str) -> None:
        """Raises CheckFailed with ``text`` unless ``condition`` holds."""
        if not condition:
            raise CheckFailed(f"task {self.name}: {self.check}: {text}")

    def dataset(self, split: str) -> Dataset:
        if split not in self.data:
            self.data[split] = self.task.dataset(cast(Split, split))
        return self.data[split]

    def batch(self, count: int, *, train: bool, start: int = 0) -> tuple[Tensor, list[Target]]:
        """Transformed samples of the training split (of the test split in evaluation), each with its class names."""
        data, transform = self.dataset("train" if train else "test"), self.task.transform(IMAGE, train=train)
        torch.manual_seed(0)
        samples = [transform(data[(start + index) % len(data)]) for index in range(count)]
        images, targets = self.task.collate(samples)
        return images, [{**target, "classes": data.classes} for target in targets]

    def head(self, info: FeaturesInfo = INFOS["one stride"]) -> Head:
        torch.manual_seed(0)
        return self.task.head(info, self.dataset("train").classes)

    def predictions(self, count: int) -> tuple[list[dict[str, Any]], list[Target]]:
        """What an untrained head says of test images, and their targets."""
        head = self.head().eval()
        _, targets = self.batch(count, train=False)
        with torch.no_grad():
            outputs = head(features(INFOS["one stride"], count))
            return self.task.decode(head, outputs, targets), targets


def settings_round_trip(case: TaskCase) -> None:
    """Its fields are its settings: written as plain values and read again, they give the same task."""
    settings = {n.removesuffix("_config"): value for n, value in asdict(case.task).items() if value is not None}
    case.expect(build(type(case.task), settings, "settings") == case.task, "its settings give another task")


def splits_are_disjoint(case: TaskCase) -> None:
    """No sample is in two splits; classes are the same in all, in one order."""
    names: dict[str, list[str]] = {
        split: [case.dataset(split)[i].name for i in _some(case.dataset(split))] for split in SPLITS
    }
    for split in SPLITS:
        case.expect(len(names[split]) > 0, f"the split {split} is empty")
        case.expect(case.dataset(split).classes == case.dataset("train").classes, f"{split} has other classes")
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        both = set(names[one]) & set(names[other])
        case.expect(not both, f"{len(both)} samples are in {one} and in {other}: {sorted(both)[:1]}")


def data_is_the_same_again(case: TaskCase) -> None:
    """The same index gives the same sample, also from a dataset that is opened again."""
    again = case.task.dataset("train")
    for index in (0, len(again) - 1):
        first, second = case.dataset("train")[index], again[index]
        case.expect(first.name == second.name and _equal(first, second), f"sample {index} differs when read again")


def manifest_counts(case: TaskCase) -> None:
    """The manifest counts the samples and is plain JSON."""
    for split in SPLITS:
        manifest = json.loads(json.dumps(case.dataset(split).manifest()))
        count = len(case.dataset(split))
        case.expect(
            manifest["count"] == count, f"the manifest of {split} counts {manifest['count']}, and it has {count}"
        )


def transform_follows_the_seed(case: TaskCase) -> None:
    """Training images repeat under one seed; all have the asked size; evaluation targets carry the image's own."""
    first, second = case.batch(4, train=True), case.batch(4, train=True)
    case.expect(torch.equal(first[0], second[0]), "one seed gives two images")
    case.expect(_equal(first[1], second[1]), "one seed gives two targets")
    for train in (True, False):
        images, targets = case.batch(4, train=train)
        case.expect(images.shape[1:] == (3, *IMAGE.size) and images.is_floating_point(), f"images are {images.shape}")
    sizes = [tuple(int(side) for side in target["size"]) for target in targets]
    originals = [case.dataset("test")[index].image for index in range(4)]
    case.expect(sizes == [(i.height, i.width) for i in originals], f"evaluation targets say {sizes}")


def head_runs_on_every_backbone(case: TaskCase) -> None:
    """The loss is finite and reaches the features and every tensor of the head, on one stride and on several."""
    images, targets = case.batch(4, train=True)
    for kind, info in INFOS.items():
        head, given = case.head(info).train(), features(info, len(images), grad=True)
        losses = case.task.loss(head, head(given), targets)
        total = sum(losses.values(), torch.zeros(()))
        case.expect(all(v.ndim == 0 for v in losses.values()), "a loss is no scalar")
        case.expect(bool(torch.isfinite(total)), f"on {kind} the loss is {float(total.detach())}")
        total.backward()
        reached = [t for t in tensors(given) if t.grad is not None and bool(t.grad.any())]
        case.expect(len(reached) > 0, f"on {kind} no gradient reaches the features")
        dead = [
            n for n, p in head.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())
        ]
        case.expect(not dead, f"on {kind} tensors of the head get no finite gradient: {', '.join(dead[:3])}")


def loss_is_a_mean(case: TaskCase) -> None:
    """Repeating every sample leaves the loss as it is."""
    _, targets = case.batch(3, train=True)
    head, given = case.head().eval(), features(INFOS["one stride"], 3)
    twice = Features.cat([given, given])
    once = sum(case.task.loss(head, head(given), targets).values(), torch.zeros(()))
    doubled = sum(case.task.loss(head, head(twice), [*targets, *targets]).values(), torch.zeros(()))
    case.expect(
        difference(doubled, once) < 1e-4, f"twice the batch, and the loss goes from {once:.5g} to {doubled:.5g}"
    )


def missing_targets_cost_nothing(case: TaskCase) -> None:
    """Samples without any target give a finite loss that can be differentiated; one among others is no trouble."""
    _, targets = case.batch(4, train=True)
    bare: list[Target] = [{key: t[key] for key in ("size", "classes") if key in t} for t in targets]
    for kind, mixed in (("all targets", bare), ("some targets", [*bare[:2], *targets[2:]])):
        head = case.head().train()
        losses = case.task.loss(head, head(features(INFOS["one stride"], 4)), mixed)
        total = sum(losses.values(), torch.zeros(()))
        case.expect(bool(torch.isfinite(total)), f"without {kind} the loss is {float(total.detach())}")
        total.backward()
        wrong = [n for n, p in head.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        case.expect(not wrong, f"without {kind} gradients are not finite: {', '.join(wrong[:3])}")


def predictions_are_told_and_drawn(case: TaskCase) -> None:
    """One prediction for each sample, on the CPU; described as JSON, drawn at the image's size or a multiple."""
    predictions, targets = case.predictions(3)
    case.expect(len(predictions) == len(targets), f"{len(predictions)} predictions for {len(targets)} samples")
    classes = case.dataset("test").classes
    for index, prediction in enumerate(predictions):
        case.expect(all(t.device.type == "cpu" for t in tensors(prediction)), "a prediction is not on the CPU")
        told = json.dumps(case.task.describe(prediction, classes), allow_nan=False)
        case.expect(isinstance(json.loads(told), dict), "a description is no JSON object")
        image = case.dataset("test")[index].image
        drawn = case.task.draw(image, prediction, classes)
        factor = drawn.width // image.width  # small images may be drawn enlarged
        case.expect(drawn.size == (factor * image.width, factor * image.height), f"a picture has the size {drawn.size}")


def truth_is_drawn(case: TaskCase) -> None:
    """Samples have no faults; their targets are drawn like predictions."""
    data = case.dataset("test")
    for index in range(3):
        sample = data[index]
        target = {**sample.target, "classes": data.classes}
        faults = case.task.faults(Sample(sample.image, target, sample.name))
        case.expect(not faults, f"sample {index} has faults: {', '.join(faults)}")
        if not case.task.empty(target):
            case.task.draw(sample.image, case.task.truth(target), data.classes)


def metric_ignores_batches(case: TaskCase) -> None:
    """The score is the same for batches of one, of five and in reverse, and counts the samples."""
    predictions, targets = case.predictions(10)
    scores = [_score(case, predictions, targets, size) for size in (1, 5, 10)]
    scores.append(_score(case, predictions[::-1], targets[::-1], 10))
    for score in scores[1:]:
        case.expect(
            score.value == scores[0].value, f"scores of one and of other batches: {scores[0].value}, {score.value}"
        )
    case.expect(all(score.count == 10 for score in scores), f"10 samples, and the score counts {scores[0].count}")
    json.dumps(scores[0].detail, allow_nan=False)


def merges_from_shards(case: TaskCase) -> None:
    """Shards from other processes, merged in any order, give exactly the score of one pass; an empty one is nothing."""
    predictions, targets = case.predictions(10)
    whole = _score(case, predictions, targets, 10)
    for kind, shards in SHARDS.items():
        seen = (_seen(case, [predictions[i] for i in s], [targets[i] for i in s]) for s in shards)
        merged, *others = map(_travelled, seen)
        for other in others:
            before = other.compute()
            merged.merge(other)
            case.expect(other.compute() == before, "merging changes the shard that is merged")
        score = merged.compute()
        case.expect(score == whole, f"{kind}: the value {score.value}, and {whole.value} in one pass; or other detail")


def score_follows_from_counts(case: TaskCase) -> None:
    """A score that declares a closed form is what it gives; so is its task-aware one."""
    predictions, targets = case.predictions(10)
    try:
        _score(case, predictions, targets, 10).check()
    except MtpeftError as error:
        raise CheckFailed(f"task {case.name}: {case.check}: the score {error.message}") from None


def nothing_seen_is_undefined(case: TaskCase) -> None:
    """With no sample the score is None, and never 0."""
    score = case.task.metric(case.dataset("test").classes).compute()
    case.expect(score.value is None and score.count == 0, f"with no sample the score is {score.value}")


def head_grows(case: TaskCase) -> None:
    """Extending a head for new classes leaves the rows of known ones bit-identical."""
    head = case.head()
    before, classes = {n: t.clone() for n, t in head.state_dict().items()}, head.classes
    head.extend(["new-one", "new-two"])
    case.expect(tuple(head.classes) == (*classes, "new-one", "new-two"), f"its classes are now {head.classes}")
    after = head.state_dict()
    for name, old in before.items():
        rows = after[name][: len(old)] if old.ndim else after[name]
        case.expect(torch.equal(rows, old), f"{name} changed for known classes")
    case.expect(any(after[n].shape != old.shape for n, old in before.items()), "no tensor grew")
    head(features(INFOS["one stride"], 2))


CHECKS: tuple[Callable[[TaskCase], None], ...] = (
    settings_round_trip, splits_are_disjoint, data_is_the_same_again, manifest_counts, transform_follows_the_seed,
    head_runs_on_every_backbone, loss_is_a_mean, missing_targets_cost_nothing, predictions_are_told_and_drawn,
    truth_is_drawn, metric_ignores_batches, merges_from_shards, score_follows_from_counts, nothing_seen_is_undefined,
    head_grows,
)  # fmt: skip


def check_task(task: str | type[Task] | Task) -> None:
    """Run every check of a task type: its id, its class, or a configured task.

    Raises:
        CheckFailed: with one line for each failed check.
    """
    failures = list(_failures(task_case(task)))
    if failures:
        raise CheckFailed("\n".join(failures))


def task_case(task: str | type[Task] | Task) -> TaskCase:
    """The task with its name."""
    if isinstance(task, Task):
        return TaskCase(type(task).__name__, task)
    cls = resolve("tasks", task) if isinstance(task, str) else task
    return TaskCase(task if isinstance(task, str) else cls.__name__, cls())


def features(info: FeaturesInfo, count: int, *, grad: bool = False) -> Features:
    """Random features of these widths, for ``count`` samples."""
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=generator).requires_grad_(grad)

    height, width = info.image_size
    maps = tuple(draw(c, height // s, width // s) for c, s in zip(info.channels, info.strides, strict=True))
    return Features(draw(info.pooled), maps, draw(info.prefix, info.channels[-1]) if info.prefix else None)


def _failures(case: TaskCase) -> Iterator[str]:
    for check in CHECKS:
        case.check = check.__name__
        try:
            check(case)
        except CheckFailed as error:
            yield str(error)
        except Exception as error:
            yield f"task {case.name}: {case.check}: it raises {type(error).__name__}: {error}"


def _score(case: TaskCase, predictions: list, targets: list, size: int) -> Score:
    metric = case.task.metric(case.dataset("test").classes)
    for start in range(0, len(predictions), size):
        metric.update(predictions[start : start + size], targets[start : start + size])
    return metric.compute()


def _seen(case: TaskCase, predictions: list, targets: list) -> Metric:
    """A metric that has seen these; one of an empty shard is not given an empty batch."""
    metric = case.task.metric(case.dataset("test").classes)
    if predictions:
        metric.update(predictions, targets)
    return metric


def _travelled(metric: Metric) -> Metric:
    """As another process has it."""
    return pickle.loads(pickle.dumps(metric))


def _some(data: Dataset) -> range:
    """At most 200 indices over the whole set."""
    return range(0, len(data), max(len(data) // 200, 1))


def _equal(one: Any, other: Any) -> bool:
    """Samples or targets, tensor by tensor."""
    if isinstance(one, Sample):
        return one.image.tobytes() == other.image.tobytes() and _equal(one.target, other.target)
    return all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))
