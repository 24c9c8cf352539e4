"""The heads of a host: by name, bound to tasks, one of them shared by the tasks of a group."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mtpeft.errors import UsageError, did_you_mean
from mtpeft.names import check_head_name
from mtpeft.peft.module_map import ModuleMap


class Heads(ModuleMap):
    """Name -> head.

    Attributes:
        of_task: task -> the head it uses.
        groups: heads that tasks of a group share: testing does not tell these tasks apart.
        untrained: head -> its parameters that needed no gradient when it was added; they never train.
    """

    def __init__(self) -> None:
        super().__init__()
        self.of_task: dict[str, str] = {}
        self.groups: set[str] = set()
        self.untrained: dict[str, set[str]] = {}

    def add(self, name: str, head: nn.Module, like: Tensor, *, training: bool, group: bool = False) -> None:
        """Take a head, moved to the device and dtype of ``like``.

        Raises:
            UsageError: for a name that no file can have.
        """
        check_head_name(name)
        self.untrained[name] = {n for n, parameter in head.named_parameters() if not parameter.requires_grad}
        self[name] = head.to(like.device, like.dtype).train(training)
        self.groups = self.groups | {name} if group else self.groups - {name}

    def bind(self, task: str, name: str) -> None:
        """The head that ``task`` uses.

        Raises:
            UsageError: for a head that was not added.
        """
        if name not in self:
            raise UsageError(f'the host has no head "{name}"', hint=did_you_mean(name, self))
        self.of_task[task] = name

    def of(self, task: str) -> Any:
        """The head of a task.

        Raises:
            UsageError: where it has none.
        """
        if task not in self.of_task:
            raise UsageError(
                f'task "{task}" has no head',
                hint="add one with host.add_head(name, head) and host.bind_head(task, name)",
            )
        return self[self.of_task[task]]

    def drop(self, task: str) -> None:
        """Remove a task's head, unless another task uses it."""
        name = self.of_task.pop(task, None)
        if name is not None and name not in self.of_task.values():
            del self[name], self.untrained[name]
            self.groups.discard(name)

    def in_group(self, task: str) -> bool:
        """Whether testing does not tell the task from others that share its head."""
        return self.of_task.get(task) in self.groups
