"""A bound on the tensors that settings out of a file can ask for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite, prod
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mtpeft.errors import DataError
from mtpeft.peft.store import AdapterContents

_FACTORIES = re.compile(
    r"(new_)?(empty|empty_strided|zeros|ones|full|rand|randn|randint|randperm|normal|arange|linspace|logspace|eye)\."
)
"""The operations of torch that make a tensor whose sizes are their arguments."""


@dataclass(frozen=True)
class Bound:
    """What building a host may ask for.

    Attributes:
        numbers: in one tensor.
        tensors: that are made of sizes.
    """

    numbers: int
    tensors: int

    @staticmethod
    def of(contents: AdapterContents, backbone: nn.Module) -> Bound:
        """More than any method needs whose trained tensors these are, on this backbone."""
        largest = max((parameter.numel() for parameter in backbone.parameters()), default=0)
        return Bound(4 * max(contents.numbers, largest) + 2**20, 100 * contents.count + 20_000)


class _Limit(TorchDispatchMode):
    """Refuses operations that make tensors of given sizes, before anything is allocated."""

    def __init__(self, bound: Bound, where: str) -> None:
        super().__init__()
        self.bound, self.where, self.made = bound, where, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        numbers = _numbers(func.__name__, (*args, *(kwargs or {}).values()))
        self.made += numbers > 0
        if numbers > self.bound.numbers:
            raise self._refusal(f"a tensor of {numbers:,} numbers")
        if self.made > self.bound.tensors:
            raise self._refusal(f"more than {self.bound.tensors:,} tensors")
        return func(*args, **(kwargs or {}))

    def _refusal(self, what: str) -> DataError:
        return DataError(
            f"{self.where} asks for {what}, and its files hold nothing of the kind",
            hint="its settings are damaged, or meant to harm; take it from a source you trust",
        )


def _numbers(name: str, arguments: Sequence[Any]) -> int:
    """How many numbers an operation would make of sizes that it is given; 0 where it takes none."""
    lists = (a for a in arguments if isinstance(a, list | tuple) and all(isinstance(size, int) for size in a))
    sizes = next(lists, None)
    if name.startswith("repeat.") and sizes and isinstance(arguments[0], Tensor):
        return arguments[0].numel() * prod(sizes)
    if not _FACTORIES.match(name):
        return 0
    if sizes is not None:
        return prod(sizes)
    ends = [abs(int(a)) for a in arguments if isinstance(a, int | float) and isfinite(a)]
    return prod(ends) if name.startswith("eye") else max(ends, default=0)


@contextmanager
def limited_allocation(bound: Bound, where: str) -> Iterator[None]:
    """Inside, no more is made of sizes than ``bound`` says.

    Raises:
        DataError: naming ``where`` the sizes come from.
    """
    with _Limit(bound, where):
        yield
