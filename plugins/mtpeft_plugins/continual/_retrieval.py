"""Methods whose tasks own their parts, and which tell from an image's plain features whose parts shall answer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mtpeft.api import Method, Passes


@dataclass
class Retrieving(Method):
    """In evaluation without a task, each image goes to the task of its head that it is closest to."""

    def owners(self, task: str | None, seen: Sequence[str]) -> tuple[str, ...]:
        return () if task is None else (task,)

    @abstractmethod
    def closeness(self, query: Tensor, parts: Sequence[Sequence[Any]]) -> Tensor:
        """How close ``query (B, d)`` is to each task, ``(B, T)``, given the parts that each task owns."""

    def answer(self, host: Passes, images: Tensor, task: str | None, head: nn.Module) -> Any:
        if task is not None:
            return head(host(images, task))
        tasks = [name for name in host.tasks if host.head_of(name) is head]
        closeness = self.closeness(host.plain(images).pooled, [owned_parts(self, host, name) for name in tasks])
        return head(host(images, [tasks[index] for index in closeness.argmax(1).tolist()]))


def owned_parts(method: Method, host: Passes, task: str) -> list[Any]:
    """The parts of a method that ``task`` owns."""
    return [placed.part for placed in host.parts_of(method, [task]) if placed.owner == task]
