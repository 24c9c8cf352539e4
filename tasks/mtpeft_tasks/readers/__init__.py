"""Readers of real data: what ``READER:PATH?option=value`` names."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl

from mtpeft.api import DataError, Dataset, UsageError, did_you_mean, resolve


def open_data(data: str, split: str, *, gives: str, seed: int = 0, classes: Sequence[str] = ()) -> Dataset:
    """The samples of a split of ``READER:PATH?option=value&...``.

    Args:
        gives: the target that the task type needs: ``label``, ``boxes`` or ``mask``.
        seed: of splits that are held out of the training data.
        classes: passed to the reader as its option ``classes``; empty for all.

    Raises:
        UsageError: for an unknown reader or option, or a reader that does not give the target.
        DataError: naming file and field, for data that cannot be used.
    """
    name, colon, rest = data.partition(":")
    if not colon or not rest:
        raise UsageError(f'data "{data}" is not READER:PATH', hint="for example folder:data/pets")
    path, _, query = rest.partition("?")
    options: dict[str, Any] = dict(parse_qsl(query, keep_blank_values=True))
    if classes:
        options["classes"] = ",".join(classes)
    read = resolve("readers", name)
    _check_options(name, read, options)
    dataset = read(path, split, seed=seed, **options)
    if len(dataset) == 0:
        raise DataError(f'"{data}" has no samples for the split "{split}"', hint="check the path and its split files")
    if gives not in dataset[0].target:
        raise UsageError(f'reader "{name}" gives no {gives}', hint=f"its samples have: {', '.join(dataset[0].target)}.")
    return dataset


def _check_options(name: str, read: Any, options: dict[str, Any]) -> None:
    parameters = inspect.signature(read).parameters.values()
    known = {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY} - {"seed"}
    for key in options:
        if key not in known:
            raise UsageError(f'reader "{name}" has no option "{key}"', hint=did_you_mean(key, known))
