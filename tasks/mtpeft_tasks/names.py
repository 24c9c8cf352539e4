"""Class names join data and heads: a growing head knows more classes than one task's data, in another order."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from mtpeft.api import DataError, Head, UsageError, checked, did_you_mean

UNKNOWN = -1

Width = Annotated[int, Field(gt=0, multiple_of=32, description="a multiple of 32")]
"""Of a head with attention, whose heads are 32 wide, or group norms of 32 groups."""


def positions(names: Sequence[str], classes: Sequence[str]) -> Tensor:
    """Where each of ``names`` stands in ``classes``: ``(len(names),) int64``, `UNKNOWN` where it does not."""
    place = {name: index for index, name in enumerate(classes)}
    return torch.tensor([place.get(name, UNKNOWN) for name in names], dtype=torch.int64)


def known_positions(names: Sequence[str], classes: Sequence[str]) -> Tensor:
    """`positions`, for training.

    Raises:
        DataError: naming a class that the head does not know.
    """
    index = positions(names, classes)
    if (index == UNKNOWN).any():
        name = names[int((index == UNKNOWN).nonzero()[0])]
        raise DataError(f'class "{name}" is in the data but not in the head', hint=did_you_mean(name, classes))
    return index


def make_head(kinds: Mapping[str, Callable[..., Head]], config: Mapping[str, Any], *fixed: Any) -> Head:
    """The head that ``head = {name = ..., ...}`` asks for; the first of ``kinds`` is the default.

    A head's settings are its keyword-only parameters, strictly typed by their annotations.

    Raises:
        UsageError: for an unknown head or setting, or a value of a wrong type or range.
    """
    settings = dict(config)
    name = settings.pop("name", next(iter(kinds)))
    if str(name) not in kinds:
        raise UsageError(f'unknown head "{name}"', hint=did_you_mean(str(name), kinds))
    parameters = inspect.signature(kinds[name], eval_str=True).parameters.values()
    known = {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    for key in settings:
        if key not in known:
            raise UsageError(f'head "{name}" has no setting "{key}"', hint=did_you_mean(key, known))
    given = {key: checked(known[key].annotation, v, f"{name}.{key}", known[key].default) for key, v in settings.items()}
    return kinds[name](*fixed, **given)


def grown(old: Tensor, count: int, std: float = 0.0) -> Tensor:
    """``old (K, ...)`` with ``count`` rows more, drawn from a normal of this width; the first K stay bit-identical."""
    new = torch.empty(count, *old.shape[1:], device=old.device, dtype=old.dtype)
    return torch.cat([old.detach(), new.normal_(std=std) if std else new.zero_()])


def require_same_classes(one: Sequence[str], other: Sequence[str]) -> None:
    """For shards of one metric, whose counts are by position.

    Raises:
        UsageError: where classes or their order differ.
    """
    if tuple(one) != tuple(other):
        name = next((a for a, b in zip_longest(one, other) if a != b), None) or "(none)"
        raise UsageError(
            f'two metrics of other classes cannot be merged, the first to differ being "{name}"',
            hint="merge what Task.metric made for the same classes",
        )


def unseen(names: Sequence[str], classes: Sequence[str]) -> tuple[str, ...]:
    """Those of ``names`` not in ``classes``, each once, in order."""
    return tuple(name for name in dict.fromkeys(names) if name not in classes)
