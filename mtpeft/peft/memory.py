"""Samples kept by key within a budget of bytes: what replay draws from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from mtpeft.errors import MtpeftError

Key = tuple[str, int]
"""Task, and index of the sample in the task's training split."""
_INDEX = "index"


class Memory:
    """Samples by key, each with extra tensors if asked (logits, features).

    They are in the order of their tasks' names, and of one task in the order they were added. Only keys and extra
    tensors are kept; `Context.load` reads the samples again. In bytes a sample counts as if its image were kept, so
    that budgets compare with those of published methods.

    Attributes:
        budget: bytes that may be kept, by this memory and those in ``beside``; None for no limit.
        beside: what the other methods of a run keep within the same budget.
        sample_bytes: what one sample counts: C H W of the backbone's images.
        owner: who is named where the budget does not suffice.
    """

    def __init__(self) -> None:
        self.budget: int | None = None
        self.beside: tuple[Memory, ...] = ()
        self.sample_bytes = 0
        self.owner = "this method"
        self._tasks: dict[str, dict[int, dict[str, Tensor]]] = {}

    def __len__(self) -> int:
        return sum(len(samples) for samples in self._tasks.values())

    def __iter__(self) -> Iterator[Key]:
        return ((task, index) for task in sorted(self._tasks) for index in self._tasks[task])

    def __contains__(self, key: Key) -> bool:
        task, index = key
        return index in self._tasks.get(task, {})

    def extra(self, key: Key) -> Mapping[str, Tensor]:
        """The tensors kept beside a sample."""
        task, index = key
        return self._tasks[task][index]

    @property
    def bytes(self) -> int:
        """What is kept: images as if they were, and extra tensors."""
        return sum(self._cost(extra) for samples in self._tasks.values() for extra in samples.values())

    def room(self, **extra: Tensor) -> int | None:
        """How many more samples with such tensors fit; None without a budget."""
        left = self._left
        return None if left is None else max(left - self.bytes, 0) // max(self._cost(extra), 1)

    def add(self, key: Key, **extra: Tensor) -> None:
        """Keep a sample, or other tensors beside one that is kept.

        Raises:
            MtpeftError: where it does not fit into the budget, or its tensors have other names or shapes than those of
                the task's other samples; nothing is added then.
        """
        task, index = key
        samples = self._tasks.get(task, {})
        kept = {name: tensor.detach().cpu().clone() for name, tensor in extra.items()}
        self._check_shapes(task, next(iter(samples.values()), kept), kept)
        before = self._cost(samples[index]) if index in samples else 0
        size = self.bytes - before + self._cost(kept)
        left = self._left
        if left is not None and size > left:
            raise MtpeftError(
                f"{self.owner} would keep {size:,} bytes of samples, and {left:,} are left for it",
                hint="raise memory, or let the method keep fewer samples",
            )
        self._tasks.setdefault(task, {})[index] = kept

    def remove(self, key: Key) -> None:
        """Forget a sample."""
        task, index = key
        del self._tasks[task][index]
        if not self._tasks[task]:
            del self._tasks[task]

    def state(self) -> dict[str, Tensor]:
        """Keys and tensors as ``TASK/index (N,)`` and ``TASK/NAME (N, ...)``."""
        state: dict[str, Tensor] = {}
        for task, samples in sorted(self._tasks.items()):
            state[f"{task}/{_INDEX}"] = torch.tensor(list(samples))
            for name in next(iter(samples.values())):
                state[f"{task}/{name}"] = torch.stack([extra[name] for extra in samples.values()])
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        groups: dict[str, dict[str, Tensor]] = {}
        for key, tensor in state.items():
            task, _, name = key.partition("/")
            groups.setdefault(task, {})[name] = tensor
        self._tasks = {
            task: {
                index: {name: tensor[row].clone() for name, tensor in tensors.items() if name != _INDEX}
                for row, index in enumerate(tensors[_INDEX].tolist())
            }
            for task, tensors in groups.items()
        }

    @property
    def _left(self) -> int | None:
        """Bytes that this memory may fill; None without a budget."""
        return None if self.budget is None else self.budget - sum(memory.bytes for memory in self.beside)

    def _check_shapes(self, task: str, others: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
        mine, known = ({name: tuple(t.shape) for name, t in tensors.items()} for tensors in (kept, others))
        if mine != known or _INDEX in mine:
            raise MtpeftError(
                f"{self.owner} keeps {mine} beside a sample of {task}, and {known} beside others",
                hint=f'tensors of one task have one name and shape each, and none is called "{_INDEX}"',
            )

    def _cost(self, extra: Mapping[str, Tensor]) -> int:
        return self.sample_bytes + sum(tensor.numel() * tensor.element_size() for tensor in extra.values())
