"""Statistics of features by class: what heads that are solved, not trained, are solved from."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtpeft.errors import MtpeftError, did_you_mean
from mtpeft.peft.routine import Targets


def labelled(classes: Sequence[str], targets: Targets) -> tuple[list[int], Tensor]:
    """Which samples have a label, and the position ``(N,) int64`` of each one's class in ``classes``.

    A label counts within the target's own ``classes``, where it has some.

    Raises:
        MtpeftError: naming a class that is not in ``classes``.
    """
    rows = [row for row, target in enumerate(targets) if "label" in target]
    place = {name: index for index, name in enumerate(classes)}
    names = [targets[row].get("classes", classes)[int(targets[row]["label"])] for row in rows]
    for name in names:
        if name not in place:
            raise MtpeftError(f'class "{name}" is in the data but not in the head', hint=did_you_mean(name, classes))
    return rows, torch.tensor([place[name] for name in names], dtype=torch.int64)


def with_rows(tensor: Tensor, rows: int) -> Tensor:
    """``tensor (K, ...)`` with so many rows of zeros more."""
    return torch.cat([tensor, tensor.new_zeros(rows, *tensor.shape[1:])])


class Statistics(nn.Module, ABC):
    """Sums over samples, in buffers: they can be added in any order, move with a head, and are counted and saved.

    Attributes:
        by_class: the buffers with a row for each class.
        count: samples of each class, ``(K,) int64``.
    """

    by_class: tuple[str, ...] = ("count",)
    count: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(classes, dtype=torch.int64))

    @abstractmethod
    def add(self, x: Tensor, labels: Tensor) -> None:
        """Count samples: ``x (B, ...)`` and the positions ``(B,)`` of their classes."""

    def fresh(self) -> Self:
        """The same of no sample."""
        empty = copy.deepcopy(self)
        for buffer in empty.buffers():
            buffer.zero_()
        return empty

    def merge(self, other: Self) -> None:
        """Add what ``other`` has counted."""
        for mine, more in zip(self.buffers(), other.buffers(), strict=True):
            mine += more

    def grow(self, classes: int) -> None:
        """Make room for so many classes more."""
        for name in self.by_class:
            setattr(self, name, with_rows(getattr(self, name), classes))


class ClassSums(Statistics):
    """Sums of each class's features in one or more spaces, whose number grows with what it is given.

    Attributes:
        spaces: samples of each class in each space, ``(K, T) int64``.
        total: ``(K, T, C)``.
    """

    by_class: tuple[str, ...] = ("count", "spaces", "total")
    spaces: Tensor
    total: Tensor

    def __init__(self, classes: int, width: int) -> None:
        super().__init__(classes)
        self.register_buffer("spaces", torch.zeros(classes, 1, dtype=torch.int64))
        self.register_buffer("total", torch.zeros(classes, 1, width))

    def add(self, x: Tensor, labels: Tensor) -> None:
        """``x`` is ``(B, C)``, or ``(B, T, C)`` where several spaces are known."""
        x = x.unsqueeze(1) if x.dim() == 2 else x
        self._widen(x.shape[1])
        self.count.index_add_(0, labels, torch.ones_like(labels))
        self.spaces[:, : x.shape[1]].index_add_(0, labels, torch.ones_like(labels)[:, None].expand(-1, x.shape[1]))
        self.total[:, : x.shape[1]].index_add_(0, labels, x.to(self.total.dtype))

    def merge(self, other: Self) -> None:
        self._widen(other.spaces.shape[1])
        super().merge(other)

    def means(self) -> Tensor:
        """``(K, T, C)``; zero where no sample was counted."""
        return self.total / self.spaces.clamp(min=1).unsqueeze(-1)

    def _widen(self, spaces: int) -> None:
        more = max(spaces - self.spaces.shape[1], 0)
        self.spaces, self.total = F.pad(self.spaces, (0, more)), F.pad(self.total, (0, 0, 0, more))


class ClassMoments(ClassSums):
    """The same with second moments, in one space.

    Attributes:
        second: sums of ``x x^T``, ``(K, C, C)``: 4 C^2 bytes for each class.
    """

    by_class = (*ClassSums.by_class, "second")
    second: Tensor

    def __init__(self, classes: int, width: int) -> None:
        super().__init__(classes, width)
        self.register_buffer("second", torch.zeros(classes, width, width))

    def add(self, x: Tensor, labels: Tensor) -> None:
        """``x (B, C)``."""
        super().add(x, labels)
        for label in labels.unique():
            own = x[labels == label].to(self.second.dtype)
            self.second[label] += own.T @ own

    def covariance(self, label: int) -> Tensor:
        """Of one class, unbiased, ``(C, C)``; zero where fewer than two samples were counted."""
        count, mean = int(self.count[label]), self.means()[label, 0]
        scatter = self.second[label] - count * torch.outer(mean, mean)
        return scatter / (count - 1) if count > 1 else torch.zeros_like(scatter)
