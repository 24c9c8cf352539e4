"""Who owns which tensor, who is frozen, and what trains now."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from mtpeft.addresses import ParameterKey
from mtpeft.names import SHARED
from mtpeft.peft.heads import Heads
from mtpeft.peft.owned_parts import OwnedParts
from mtpeft.peft.parts import PerTask


@dataclass
class Counts:
    """Trained parameters, heads apart.

    Attributes:
        shared: in parts (and `PerTask` copies apart) that every task trains.
        per_task: task -> parameters it owns.
        heads: head -> its parameters.
        buffers: bytes of fixed state (masks, random bases, statistics of heads) kept beside the parameters.
    """

    shared: int = 0
    per_task: dict[str, int] = field(default_factory=dict)
    heads: dict[str, int] = field(default_factory=dict)
    buffers: int = 0

    @property
    def parts(self) -> int:
        return self.shared + sum(self.per_task.values())


@dataclass(eq=False)
class Ownership:
    """The tasks of a host, and what each of them and ``shared`` own.

    Attributes:
        tasks: in the order they were added.
        frozen: owners that train no more.
        in_force: the tasks that train now; None where nobody said.
    """

    parts: OwnedParts
    heads: Heads
    tasks: list[str] = field(default_factory=list)
    frozen: set[str] = field(default_factory=set)
    in_force: tuple[str, ...] | None = None

    @property
    def owners(self) -> list[str]:
        """``shared`` and the tasks, whether or not they own anything."""
        return [SHARED, *self.tasks]

    def trainable(self, tasks: Sequence[str]) -> dict[str, nn.Parameter]:
        """What training ``tasks`` changes: ``OWNER/METHOD/SITE/TENSOR`` of parts, ``head:NAME/TENSOR`` of heads."""
        trainable: dict[str, nn.Parameter] = {}
        for owner in dict.fromkeys((SHARED, *tasks)):
            if owner not in self.frozen:
                own = self._parameters(owner)
                trainable |= {str(ParameterKey("part", owner, name)): p for name, p in own.items()}
        for head in dict.fromkeys(self.heads.of_task[task] for task in tasks if task in self.heads.of_task):
            if not self._head_frozen(head):
                free = {n: p for n, p in self.heads[head].named_parameters() if n not in self.heads.untrained[head]}
                trainable |= {str(ParameterKey("head", head, name)): p for name, p in free.items()}
        return trainable

    def shared_parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters of the shared owner, without per-task copies."""
        return {} if SHARED in self.frozen else self._parameters(SHARED)

    def focus(self, tasks: Sequence[str] | None) -> None:
        """Let only what ``tasks`` train get a gradient; None: everything that is not frozen."""
        self.in_force = None if tasks is None else tuple(tasks)
        self.apply()

    def apply(self) -> None:
        """Set ``requires_grad`` of every tensor that could train."""
        tasks = self.tasks if self.in_force is None else self.in_force
        trained = {id(parameter) for parameter in self.trainable(tasks).values()}
        for parameter in (*self.parts.parameters(), *self.heads.parameters()):
            parameter.requires_grad_(id(parameter) in trained)

    def count(self) -> Counts:
        """Parameters by owner, and bytes of buffers."""
        counts = Counts(heads={name: _numel(head.parameters()) for name, head in self.heads.items()})
        buffers = [*self.heads.buffers()]
        for owner in self.owners:
            tensors = self.parts.tensors(owner).values()
            number = _numel(t for t in tensors if isinstance(t, nn.Parameter))
            buffers += [t for t in tensors if not isinstance(t, nn.Parameter)]
            if owner == SHARED:
                counts.shared = number
            else:
                counts.per_task[owner] = number
        counts.buffers = sum(t.numel() * t.element_size() for t in buffers)
        return counts

    def acting(self, task: str) -> frozenset[str]:
        """The owners and ``head:NAME`` whose trained tensors act for ``task``."""
        active = self.parts.active_parts(task, self.tasks)
        owners = {task, *(part.owner for part in active)}
        owners = {owner for owner in owners if self._parameters(owner)}  # perhaps all in what its parts share
        copies = [m.copies for part in active for m in part.part.modules() if isinstance(m, PerTask) and m.together]
        owners |= {other for held in copies for other in held}
        head = self.heads.of_task.get(task)
        return frozenset(owners | ({f"head:{head}"} if head is not None else set()))

    def newcomers_act(self, task: str) -> bool:
        """Whether the parts of a task yet to come would act for ``task`` too."""
        newcomer = "\0"  # no task has this name
        seen = (*self.tasks, newcomer)
        return any(newcomer in method.owners(task, seen) for method in self.parts.methods.values())

    def _parameters(self, owner: str) -> dict[str, nn.Parameter]:
        return {name: t for name, t in self.parts.tensors(owner).items() if isinstance(t, nn.Parameter)}

    def _head_frozen(self, head: str) -> bool:
        """A head is frozen if all its tasks are."""
        return all(task in self.frozen for task, name in self.heads.of_task.items() if name == head)


def _numel(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)
