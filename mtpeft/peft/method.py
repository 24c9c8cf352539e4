"""A method: a recipe that says which sites get which part, and who owns it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from torch import Tensor, nn

from mtpeft.errors import UsageError
from mtpeft.names import SHARED
from mtpeft.peft.declarations import Declarations

if TYPE_CHECKING:
    from mtpeft.backbone.features import Features, FeaturesInfo
    from mtpeft.peft.memory import Memory
    from mtpeft.peft.mounts import PartAtSite
    from mtpeft.peft.parts import Part
    from mtpeft.peft.route import Route
    from mtpeft.peft.sites import Site


class Stateful(Protocol):
    """What a method keeps beside its parts: `mtpeft.peft.routine.Routine` is one."""

    memory: Memory

    def kept(self) -> dict[str, Tensor]:
        """Everything that must survive, by name."""

    def give_back(self, kept: dict[str, Tensor]) -> None:
        """Take back what `kept` gave."""


class Passes(Protocol):
    """What `Method.encode` and `Method.answer` may ask of the host."""

    training: bool

    @property
    def tasks(self) -> list[str]:
        """The tasks met so far."""

    def head_of(self, task: str) -> Any:
        """The head of a task; tasks of a group share one."""

    def parts_of(self, method: Method, tasks: Sequence[str]) -> list[PartAtSite]:
        """The parts of ``method`` that act for any of ``tasks``, each once, with its site and owner."""

    def run(self, images: Tensor, route: Route, given: Mapping[str, Tensor] | None = None) -> Features:
        """A pass of the adapted backbone; ``given`` are tensors ``(B, ...)`` for parts (`Part.given`)."""

    def plain(self, images: Tensor) -> Features:
        """A pass of the plain backbone, in evaluation mode and without gradient."""

    def __call__(self, images: Tensor, task: str | Sequence[str | None] | None = None) -> Features:
        """Features for one task, for one of each sample, or for samples whose task is not known."""


@dataclass
class Method(ABC):
    """Subclass as a dataclass: the fields are the configuration.

    Attributes:
        scope: ``shared`` (one owner, every task trains it) or ``task`` (each task owns a copy).
        at: site pattern; terms are separated by spaces, alternatives by ``|``, and the first alternative that matches
            wins.
        blocks: which blocks: empty for all, ``"0-5"``, ``"9,11"`` or ``"last:3"``.
        declares: what the method says of itself; no field, so write no annotation.
    """

    if TYPE_CHECKING:  # read-only to a type checker: a class attribute or a property may take its place

        @property
        def declares(self) -> Declarations: ...
    else:
        declares = Declarations()

    scope: Literal["shared", "task"] = "shared"
    at: str = ""
    blocks: str = ""

    @abstractmethod
    def part(self, site: Site) -> Part | None:
        """The part for a site that ``at`` matched, or None to leave it alone.

        Raises:
            NotApplicable: where the method makes no sense on this site or backbone.
        """

    def common(self, sites: Sequence[Site]) -> nn.Module | None:
        """What one owner's parts share across sites; a part reaches it as ``self.common``. Built before the parts."""
        return None

    def owners(self, task: str | None, seen: Sequence[str]) -> tuple[str, ...]:
        """Whose parts act, in order, for a sample of ``task`` (None: not known)."""
        if self.scope == SHARED:
            return (SHARED,)
        return (task,) if task is not None else ()

    def encode(self, host: Passes, images: Tensor, route: Route) -> Features:
        """Images ``(B, 3, H, W)`` to what the heads see, in training and evaluation alike. Default: one host pass."""
        return host.run(images, route)

    def features_info(self, info: FeaturesInfo, seen: Sequence[str]) -> FeaturesInfo:
        """The widths of what `encode` returns, which may grow with the tasks seen; heads are built for it."""
        return info

    def classifier(self, info: FeaturesInfo, classes: Sequence[str]) -> nn.Module | None:
        """A `mtpeft.api.Head` that replaces the classification head, or None."""
        return None

    def answer(self, host: Passes, images: Tensor, task: str | None, head: nn.Module) -> Any:
        """Outputs of ``head`` in evaluation, where several passes or logits are combined. Default: the head on one
        pass's features.

        Args:
            task: None where testing does not tell it, as in a group.
        """
        return head(host(images, task))

    def rate_of(self, tensor: str) -> float:
        """Factor on the method's learning rate for a tensor of its parts, by its name in the part."""
        return 1.0

    def routine(self) -> Stateful | None:
        """What it does during training, a `mtpeft.api.Routine`; None for nothing beyond the gradient."""
        return None

    def require(self, condition: bool, message: str, hint: str = "") -> None:
        """For ``__post_init__``: refuse settings that its annotations allow, such as two that do not go together.

        Raises:
            UsageError: if ``condition`` is false.
        """
        if not condition:
            raise UsageError(message, hint=hint)


def must_be_told(method: Method, tasks: Sequence[str]) -> bool:
    """Whether none of the method's parts act for images of ``tasks`` whose task testing does not tell."""
    own = type(method).encode is Method.encode and type(method).answer is Method.answer
    return method.declares.needs_task_id or (own and method.owners(None, tasks) == ())
