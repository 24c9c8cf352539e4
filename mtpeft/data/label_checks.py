"""What can be told from the counts of a data set alone, before its images are decoded. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtpeft.errors import DataError
from mtpeft.task import Dataset, Task

Histograms = Mapping[str, Mapping[str, int]]
"""For each split, how often each class is shown, in the data's own unit (images, objects or pixels)."""


@dataclass(frozen=True)
class Allowed:
    """What a task takes for right.

    Attributes:
        fewest: classes without which there is nothing to learn (`Task.fewest_classes`).
        grows: its head learns other classes in other tasks, so it may have one itself.
        missing: validation or test may show classes that training does not (``missing_classes``).
        degenerate: labels may be such that nothing can be learned (``degenerate``).
    """

    fewest: int = 1
    grows: bool = False
    missing: bool = False
    degenerate: bool = False

    @staticmethod
    def by(task: Task) -> Allowed:
        """What a task's type and settings allow."""
        allows = (task.missing_classes == "allow", task.degenerate == "allow")
        return Allowed(task.fewest_classes, bool(task.group), *allows)


STRICT = Allowed()


def label_errors(what: str, histograms: Histograms, allowed: Allowed = STRICT) -> Iterator[DataError]:
    """Labels that cannot be meant: a split without any, classes that are named but never shown, or no second class.

    Args:
        what: how the data is called in messages, e.g. ``task "pets"``.
    """
    for split, shown in histograms.items():
        if not sum(shown.values()):
            hint = "check where its labels are, and which classes are asked for: mtpeft data PATH shows them"
            yield DataError(f"{what} has no labels in the split {split}", hint=hint)
    if not allowed.missing:
        for split, names in unlearned(histograms).items():
            message = f"{what} shows {listed(names)} in the split {split}, but never in train"
            hint = 'is it misspelt? Else leave it out (classes = [...]), or set missing_classes = "allow"'
            yield DataError(message, hint=hint)
    if not allowed.degenerate and any(histograms.get("train", {}).values()):
        yield from _degenerate(what, histograms, allowed)


def _degenerate(what: str, histograms: Histograms, allowed: Allowed) -> Iterator[DataError]:
    if names := unshown(histograms):
        hint = 'correct the names, leave these out (classes = [...]), or set degenerate = "allow"'
        yield DataError(f"{what} names {listed(names)}, which no sample of any split shows", hint=hint)
    trained = [name for name, count in histograms["train"].items() if count]
    if len(trained) < allowed.fewest and not allowed.grows:
        message = f"{what} shows one class only, {listed(trained)}: every answer would be right"
        hint = 'label what is not of it as another class (what is ignored is none), or set degenerate = "allow"'
        yield DataError(message, hint=hint)


def label_warnings(what: str, histograms: Histograms, allowed: Allowed = STRICT) -> Iterator[str]:
    """Where a score of this task would mean little although its labels are allowed, for the summary of a run."""
    train = histograms.get("train", {})
    trained = [name for name, count in train.items() if count]
    if len(trained) == 1 and allowed.fewest > 1:
        reason = "its head need tell it from nothing" if allowed.grows else "every answer is right"
        yield f"{what} trains one class, {listed(trained)}: what it scores when learned means nothing, for {reason}"
    if names := sorted({name for names in unlearned(histograms).values() for name in names}):
        yield f"{what} never trains {listed(names)}, which count as wrong wherever they are asked for"
    if names := unshown(histograms):
        yield f"{what} has outputs for {listed(names)}, which no sample shows: its scores leave them out"


def unshown(histograms: Histograms) -> list[str]:
    """The classes of ``train`` that no split shows."""
    return [name for name in histograms.get("train", {}) if not any(shown.get(name) for shown in histograms.values())]


def unlearned(histograms: Histograms) -> dict[str, list[str]]:
    """For each other split, the classes that it shows and ``train`` does not."""
    if not sum(histograms.get("train", {}).values()):
        return {}
    learned = {name for name, count in histograms["train"].items() if count}
    unseen = {
        split: [name for name, count in shown.items() if count and name not in learned]
        for split, shown in histograms.items()
    }
    return {split: names for split, names in unseen.items() if names}


def listed(names: Sequence[str], most: int = 5) -> str:
    """Names in quotes, the first of many.

    >>> listed(["a", "b", "c"], most=2)
    '"a", "b" and 1 more'
    """
    shown = ", ".join(f'"{name}"' for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def histograms(manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Those of the splits that have one; what was drawn from a split is judged by the whole of it."""
    found = {split: _histogram(about) for split, about in manifests.items()}
    return {split: shown for split, shown in found.items() if shown is not None}


def _histogram(about: Mapping[str, Any]) -> dict[str, int] | None:
    return _histogram(about["from"]) if "from" in about else about.get("histogram")


def left_out(what: str, splits: Iterable[Dataset]) -> Iterator[str]:
    """What the data holds that was not read, in one sentence, for who trains on it."""
    messages = list(dict.fromkeys(error.message for data in splits for error in data.left_out))
    if messages:
        more = f" ({len(messages)} remarks like this one: mtpeft data PATH lists them)" if len(messages) > 1 else ""
        yield f"{what}: {messages[0]}{more}"


def recorded(data: Dataset, examples: int = 5) -> dict[str, Any]:
    """A split's manifest with what its reader left out: ``{"left_out": {"count": N, "examples": [...]}}``."""
    messages = [error.message for error in data.left_out]
    said = {"left_out": {"count": len(messages), "examples": messages[:examples]}} if messages else {}
    return {**data.manifest(), **said}
