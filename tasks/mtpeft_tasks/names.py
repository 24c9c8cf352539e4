"""Class names join data and heads: a growing head knows more classes than one task's data, in another order."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from mtpeft.api import DataError, Head, UsageError, checked, did_you_mean, registry, resolve

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


def heads_for(*kinds: str) -> dict[str, str]:
    """The registered heads ``KIND/NAME`` of these kinds, by name: ``{"fcos": "det/fcos", ...}``."""
    ids = {id: id.partition("/") for id in registry("heads")}
    return {name: id for id, (kind, _, name) in ids.items() if kind in kinds}


def make_head(kinds: Sequence[str], default: str, config: Mapping[str, Any], *fixed: Any) -> Head:
    """The registered head of these kinds that ``head = {name = ..., ...}`` asks for.

    A head's settings are its keyword-only parameters, strictly typed by their annotations.

    Raises:
        UsageError: for an unknown head or setting, or a value of a wrong type or range.
    """
    settings = dict(config)
    name, ids = settings.pop("name", default), heads_for(*kinds)
    if str(name) not in ids:
        raise UsageError(f'unknown head "{name}"', hint=did_you_mean(str(name), ids))
    cls = resolve("heads", ids[name])
    parameters = inspect.signature(cls, eval_str=True).parameters.values()
    known = {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    for key in settings:
        if key not in known:
            raise UsageError(f'head "{name}" has no setting "{key}"', hint=did_you_mean(key, known))
    given = {key: checked(known[key].annotation, v, f"{name}.{key}", known[key].default) for key, v in settings.items()}
    return cls(*fixed, **given)


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
    known = frozenset(classes)
    return tuple(name for name in dict.fromkeys(names) if name not in known)
