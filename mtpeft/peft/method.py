"""A method: a recipe that says which sites get which part, and who owns it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from mtpeft.errors import MtpeftError, UsageError
from mtpeft.names import SHARED
from mtpeft.peft.declarations import Declarations

if TYPE_CHECKING:
    from mtpeft.backbone.features import Features, FeaturesInfo
    from mtpeft.peft.host import Host
    from mtpeft.peft.parts import Part
    from mtpeft.peft.sites import Site
    from mtpeft.task import Head


def no_loss(task: str, images: Tensor, targets: list[dict[str, Any]]) -> Tensor:
    """Stands in a context that was given no loss.

    Raises:
        MtpeftError: always.
    """
    raise MtpeftError("this method needs the loss of its tasks, and its context has none", hint="give Context a loss")


def no_score(task: str, samples: int) -> float | None:
    """Stands in a context that was given no score.

    Raises:
        MtpeftError: always.
    """
    raise MtpeftError("this method needs the score of its tasks, and its context has none", hint="give Context a score")


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
        score: ``score(task, samples) -> float``, the task's metric on at most so many validation samples with the host
            as it is now, in evaluation mode; the higher, the better; None where it is undefined. Never the test split.
        seed: the run's; what a method draws by itself comes from a generator keyed by it, the stage and the step.
    """

    host: Host
    tasks: tuple[str, ...] = ()
    seen: tuple[str, ...] = ()
    stage: int = 0
    stages: int | None = None
    step: int = 0
    steps: int = 0
    batches: Callable[[], Iterable[tuple[str, Tensor, list[dict[str, Any]]]]] = field(default=lambda: iter(()))
    loss: Callable[[str, Tensor, list[dict[str, Any]]], Tensor] = no_loss
    score: Callable[[str, int], float | None] = no_score
    seed: int = 0


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

    def begin_stage(self, context: Context) -> None:
        """A stage begins."""

    def begin_update(self, context: Context) -> bool:
        """An update begins; its batches come next.

        Returns:
            Whether other tensors train from now on: the optimizer is made anew, and what stays keeps its moments.
        """
        return False

    def penalty(self, context: Context) -> Tensor | None:
        """A scalar added to the loss of each batch."""
        return None

    def after_backward(self, context: Context) -> None:
        """Gradients are complete; clipping and the optimizer's step come next."""

    def after_step(self, context: Context) -> None:
        """The optimizer has stepped: bring parameters back to where they may be (pruning, clipped norms)."""

    def end_stage(self, context: Context) -> None:
        """A stage ends; evaluation comes next."""

    def state(self) -> dict[str, Tensor]:
        """What must survive a restart beside the parts' own tensors."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""

    def require(self, condition: bool, message: str, hint: str = "") -> None:
        """For ``__post_init__``: refuse settings that its annotations allow, such as two that do not go together.

        Raises:
            UsageError: if ``condition`` is false.
        """
        if not condition:
            raise UsageError(message, hint=hint)
