"""A method: a recipe that says which sites get which part, and who owns it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor, nn

from mtpeft.errors import UsageError

if TYPE_CHECKING:
    from mtpeft.backbone.features import Features, FeaturesInfo
    from mtpeft.peft.host import Host
    from mtpeft.peft.parts import Part
    from mtpeft.peft.sites import Site
    from mtpeft.task import Head

SHARED = "shared"
"""The owner of parts that every task trains. No task may have this name."""


@dataclass
class Context:
    """What a method's hooks see of the training around them.

    Attributes:
        host: backbone, parts and heads.
        tasks: the tasks of this stage.
        seen: every task met so far, this stage's included.
        stage, stages: index of the stage, and how many there are (None where the schedule cannot tell).
        step, steps: update within the stage, and their number.
        batches: yields ``(task, images, targets)`` training batches, for `Method.calibrate` and closed-form heads.
        loss: ``loss(task, images, targets) -> scalar``, the task's own loss on the host's current outputs.
    """

    host: Host
    tasks: tuple[str, ...] = ()
    seen: tuple[str, ...] = ()
    stage: int = 0
    stages: int | None = None
    step: int = 0
    steps: int = 0
    batches: Callable[[], Iterable[tuple[str, Tensor, list[dict[str, Any]]]]] = field(default=lambda: iter(()))
    loss: Callable[[str, Tensor, list[dict[str, Any]]], Tensor] | None = None


@dataclass
class Method(ABC):
    """Subclass as a dataclass: the fields are the configuration.

    Class attributes declare what the conformance kit holds a method to; override as properties where the configuration
    decides.

    Attributes:
        scope: ``shared`` (one owner, every task trains it) or ``task`` (each task owns a copy).
        at: site pattern; terms are separated by spaces, alternatives by ``|``, and the first alternative that matches
        wins. blocks: which blocks: empty for all, ``"0-5"``, ``"9,11"`` or ``"last:3"``.
    """

    identity_at_init: ClassVar[bool] = True
    mergeable: ClassVar[bool] = False
    needs_task_id: ClassVar[bool] = False
    needs_task_count: ClassVar[bool] = False
    inference_passes: ClassVar[int] = 1
    families: ClassVar[str] = ""
    """Families it makes sense on, for people (the machine's word is the refusal itself)."""
    learning_rate: ClassVar[float] = 1e-3
    paper: ClassVar[str] = ""

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

    def encode(self, host: Host, images: Tensor, route: Any) -> Features:
        """Images ``(B, 3, H, W)`` to what the heads see, in training and evaluation alike. Default: one host pass."""
        return host.run(images, route)

    def features_info(self, info: FeaturesInfo) -> FeaturesInfo:
        """The widths of what `encode` returns; heads are built for it."""
        return info

    def classifier(self, info: FeaturesInfo, classes: Sequence[str]) -> Head | None:
        """A head that replaces the classification head, or None."""
        return None

    def calibrate(self, context: Context) -> None:
        """Look at data before training (EVA, SPT, GPS, InfLoRA)."""

    def begin_task(self, context: Context) -> None:
        """A stage begins."""

    def penalty(self, context: Context) -> Tensor | None:
        """A scalar added to the loss of each batch."""
        return None

    def after_backward(self, context: Context) -> None:
        """Gradients are complete; clipping and the optimizer's step come next."""

    def after_step(self, context: Context) -> None:
        """The optimizer has stepped: bring parameters back to where they may be (pruning, clipped norms)."""

    def end_task(self, context: Context) -> None:
        """A stage ends; evaluation comes next."""

    def state(self) -> dict[str, Tensor]:
        """What must survive a restart beside the parts' own tensors."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""

    def check(self, condition: bool, message: str, hint: str = "") -> None:
        """For ``__post_init__``: refuse a setting that is out of range.

        Raises:
            UsageError: if ``condition`` is false.
        """
        if not condition:
            raise UsageError(message, hint=hint)
