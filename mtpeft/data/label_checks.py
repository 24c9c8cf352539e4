"""What can be told from the counts of a data set alone, before its images are decoded. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mtpeft.errors import DataError

Histograms = Mapping[str, Mapping[str, int]]
"""For each split, how often each class is shown, in the data's own unit (images, objects or pixels)."""


def label_errors(what: str, histograms: Histograms, *, allow_missing: bool = False) -> Iterator[DataError]:
    """Splits without any label, and classes that are asked for but never shown in training.

    Args:
        what: how the data is called in messages, e.g. ``task "pets"``.
        allow_missing: leave out the second.
    """
    for split, shown in histograms.items():
        if not sum(shown.values()):
            hint = "check where its labels are, and which classes are asked for: mtpeft data PATH shows them"
            yield DataError(f"{what} has no labels in the split {split}", hint=hint)
    if allow_missing:
        return
    for split, names in unlearned(histograms).items():
        message = f"{what} shows {listed(names)} in the split {split}, but never in train"
        hint = 'is it misspelt? Else leave it out (classes = [...]), or set missing_classes = "allow"'
        yield DataError(message, hint=hint)


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
