"""What readers can rely on: errors that are raised, or kept for who wants them all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from mtpeft.data.reader import Reader
from mtpeft.errors import DataError
from mtpeft.task import Dataset


@dataclass
class Numbers(Reader):
    gives: ClassVar[tuple[str, ...]] = ("label",)

    def read(self, path: str, split: str, *, gives: str, seed: int) -> Dataset:
        raise NotImplementedError


def inverse(number: int) -> float:
    if number == 0:
        raise DataError("0 has no inverse", hint="leave it out")
    return 1 / number


def test_all_are_tried_in_order_and_errors_kept() -> None:
    reader = Numbers()
    reader.found = []
    assert list(reader.attempt_all(inverse, [4, 0, 2, 0])) == [0.25, None, 0.5, None]
    assert [error.message for error in reader.found] == ["0 has no inverse"] * 2


def test_the_first_error_in_order_is_raised_and_no_more_is_asked_for() -> None:
    seen = []

    def noted(number: int) -> float:
        seen.append(number)
        return inverse(number)

    tried = Numbers().attempt_all(noted, [2, 0, *range(1, 100_000)])
    assert next(tried) == 0.5
    with pytest.raises(DataError, match="no inverse"):
        next(tried)
    assert len(seen) < 100_000


def test_what_is_no_fault_of_the_data_is_raised_as_it_is() -> None:
    reader = Numbers()
    reader.found = []
    with pytest.raises(TypeError):
        list(reader.attempt_all(inverse, [1, "a"]))
