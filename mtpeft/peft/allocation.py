"""A bound on the tensors that settings out of a file can ask for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

from torch import Size
from torch.utils._python_dispatch import TorchDispatchMode

from mtpeft.errors import DataError


class _Limit(TorchDispatchMode):
    """Refuses operations that make a tensor of given sizes, before anything is allocated."""

    def __init__(self, most: int, where: str) -> None:
        super().__init__()
        self.most, self.where = most, where

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        sizes = args[0] if args else ()
        if isinstance(sizes, list | tuple | Size) and all(isinstance(size, int) for size in sizes):
            self._check(prod(sizes))
        elif func.__name__.startswith(("arange", "eye")):
            self._check(prod(size for size in args if isinstance(size, int)))
        return func(*args, **(kwargs or {}))

    def _check(self, numbers: int) -> None:
        if numbers > self.most:
            raise DataError(
                f"{self.where} asks for a tensor of {numbers:,} numbers, and its files hold none so large",
                hint="its settings are damaged, or meant to harm; take it from a source you trust",
            )


@contextmanager
def limited_allocation(most: int, where: str) -> Iterator[None]:
    """Inside, no tensor of more than ``most`` numbers is made from sizes.

    Raises:
        DataError: naming ``where`` the sizes come from.
    """
    with _Limit(most, where):
        yield
