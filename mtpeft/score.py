"""A metric's value with the counts it was computed from, and the closed form that leads from one to the other.

A `Score` is a pure value: files hold it, shards and stages are compared by it, and no torch is needed to check it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum, isclose, isfinite, sqrt
from typing import Annotated, Any, Literal

from pydantic import Field

from mtpeft.errors import DataError
from mtpeft.files import STRICT

LARGEST = 2**63
"""No count and no sum of errors is as large: what is larger is damage, and would overflow."""

Factor = Annotated[float, Field(ge=0, le=1e6)]
Numbers = list[float | None]


@dataclass(frozen=True)
class Form:
    """The closed form of a metric over fields of its `Score.detail`, each a number, a list or a table of numbers.

    Attributes:
        kind: which one.

            * ``ratio``: fields ``top, bottom``; the mean of ``scale * top / bottom`` over the entries whose bottom is
              above 0, and whose third field, where it is given, is. Percent correct has one entry, mean IoU one for
              each class.
            * ``root_ratio``: fields ``top, bottom``; ``scale * sqrt(top / bottom)``, as of a mean squared error.
            * ``best_f``: fields ``right, predicted, found, actual``; the largest of
              ``scale * (1 + b) P R / (b P + R)`` over thresholds, with ``P = right / predicted``,
              ``R = found / actual`` and ``b = beta_squared``; undefined where ``actual`` is 0.
            * ``mean``: one field; ``scale`` times the mean of its entries that are not None.
        fields: names in ``detail``, in the order of the kind.
        scale: 100 for percent.
        beta_squared: of ``best_f``.
    """

    __pydantic_config__ = STRICT

    kind: Literal["ratio", "root_ratio", "best_f", "mean"]
    fields: tuple[str, ...]
    scale: Factor = 1.0
    beta_squared: Factor = 1.0

    def value(self, detail: Mapping[str, Any]) -> float | None:
        """The metric's value from its counts, None where it is undefined.

        Raises:
            DataError: naming the field of ``detail`` that is missing, is no count, or is of another length.
        """
        least, most, compute = _KINDS[self.kind]
        if not least <= len(self.fields) <= most:
            raise DataError(f'has a form "{self.kind}" of {len(self.fields)} fields', hint=_HINT)
        columns = [_numbers(detail, name, signed=self.kind == "mean") for name in self.fields]
        length = max(map(len, columns))
        for name, numbers in zip(self.fields, columns, strict=True):
            if len(numbers) not in (1, length):
                raise DataError(f"has {len(numbers)} entries in detail.{name}, and {length} in others", hint=_HINT)
        value = compute(self, *(numbers if len(numbers) == length else numbers * length for numbers in columns))
        return value if value is None or isfinite(value) else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; what is 1 is left out."""
        factors = {"scale": self.scale, "beta_squared": self.beta_squared}
        written = {name: value for name, value in factors.items() if value != 1}
        return {"kind": self.kind, "fields": list(self.fields), **written}

    def counts(self, detail: Mapping[str, Any]) -> tuple[float, float] | None:
        """``(top, bottom)`` of a ratio with one entry, which can be summed over tasks; None of any other form."""
        if self.kind != "ratio" or len(self.fields) != 2:
            return None
        top, bottom = (_numbers(detail, name) for name in self.fields)
        return (top[0] or 0.0, bottom[0] or 0.0) if len(top) == len(bottom) == 1 else None


@dataclass(frozen=True)
class Score:
    """A metric's value with what it was computed from.

    Attributes:
        value: the metric in its own unit, or None where it is undefined (never 0 for undefined).
        count: number of samples seen.
        detail: further numbers; where the metric has counts, those it can be recomputed from.
        form: how ``value`` follows from ``detail``; None where it does not, and then nothing can be checked.
        task_aware: of a head that several tasks share, the score where only the task's own classes may be answered.
    """

    __pydantic_config__ = STRICT

    value: float | None
    count: int
    detail: dict[str, Any] = field(default_factory=dict)
    form: Form | None = None
    task_aware: Score | None = None

    @staticmethod
    def of(form: Form, count: int, detail: dict[str, Any], task_aware: Score | None = None) -> Score:
        """The score whose value follows from ``detail`` by ``form``."""
        return Score(form.value(detail), count, detail, form, task_aware)

    def check(self) -> None:
        """Recompute the value from its counts.

        Raises:
            DataError: for a value that its counts contradict, or that is no finite number. The message is a predicate,
                to stand behind the name of what was scored.
        """
        if self.value is not None and not abs(self.value) < LARGEST:
            raise DataError(f"is {self.value}", hint="an undefined metric is None, not a number")
        if not 0 <= self.count < LARGEST:
            raise DataError(f"counts {self.count} samples", hint="a count is 0 or more")
        _check_numbers(self.detail)
        expected = self.value if self.form is None else self.form.value(self.detail)
        if not _same(self.value, expected):
            raise DataError(f"is {self.value}, and its counts give {expected}", hint=_HINT)
        if self.task_aware is not None:
            try:
                self.task_aware.check()
            except DataError as error:
                raise DataError(f"has a task_aware score that {error.message}", hint=error.hint) from None

    def to_dict(self) -> dict[str, Any]:
        """The three fields every file has, and the others where they say something; plain JSON."""
        row: dict[str, Any] = {"value": self.value, "count": self.count, "detail": dict(self.detail)}
        if self.form is not None:
            row["form"] = self.form.to_dict()
        if self.task_aware is not None:
            row["task_aware"] = self.task_aware.to_dict()
        return row


_HINT = "the file is damaged or was edited; take it from a copy, or evaluate the run again"


def _check_numbers(detail: Mapping[str, Any]) -> None:
    waiting: list[Any] = [detail]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Mapping):
            waiting.extend(item.values())
        elif isinstance(item, list | tuple):
            waiting.extend(item)
        elif isinstance(item, int | float) and not abs(item) < LARGEST:  # NaN is not below anything
            raise DataError("has a number in its detail that is not finite, or is 2**63 or more", hint=_HINT)


def _same(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return isclose(one, other, rel_tol=1e-9, abs_tol=1e-9)


def _numbers(detail: Mapping[str, Any], name: str, *, signed: bool = False) -> Numbers:
    """A field of ``detail`` as a list of numbers; entries are None in a mean alone.

    Raises:
        DataError: naming the field.
    """
    if name not in detail:
        raise DataError(f"has no detail.{name}", hint=_HINT)
    item = detail[name]
    entries = list(item.values()) if isinstance(item, Mapping) else item if isinstance(item, list) else [item]
    for entry in entries:
        if entry is None and signed:
            continue
        if isinstance(entry, bool) or not isinstance(entry, int | float) or not abs(entry) < LARGEST:
            raise DataError(f"has a detail.{name} that holds what is no number", hint=_HINT)
        if entry < 0 and not signed:
            raise DataError(f"has a detail.{name} that holds {entry}, and a count is 0 or more", hint=_HINT)
    return entries


def _ratio(form: Form, top: Sequence[Any], bottom: Sequence[Any], where: Sequence[Any] | None = None) -> float | None:
    entries = zip(top, bottom, bottom if where is None else where, strict=True)
    return _mean([form.scale * t / b for t, b, counted in entries if b > 0 and counted > 0])


def _root_ratio(form: Form, top: Sequence[Any], bottom: Sequence[Any]) -> float | None:
    ratio = _ratio(Form("ratio", ()), top, bottom)
    return None if ratio is None else form.scale * sqrt(ratio)


def _best_f(form: Form, *columns: Sequence[Any]) -> float | None:
    rows = list(zip(*columns, strict=True))
    if not any(actual for *_, actual in rows):
        return None
    return form.scale * max(_f_measure(form.beta_squared, *row) for row in rows)


def _f_measure(b: float, right: float, predicted: float, found: float, actual: float) -> float:
    """``(1 + b) P R / (b P + R)``, multiplied out; 0 where nothing is right."""
    whole = b * right * actual + found * predicted
    return (1 + b) * right * found / whole if whole else 0.0


def _mean_of(form: Form, values: Numbers) -> float | None:
    return _mean([form.scale * value for value in values if value is not None])


def _mean(values: Sequence[float]) -> float | None:
    return fsum(values) / len(values) if values else None


_KINDS: dict[str, tuple[int, int, Callable[..., float | None]]] = {
    "ratio": (2, 3, _ratio),
    "root_ratio": (2, 2, _root_ratio),
    "best_f": (4, 4, _best_f),
    "mean": (1, 1, _mean_of),
}
"""For each kind: the fewest and most fields, and its function."""
