"""A routine: what a method does during training, and what it keeps for that. Structure stays with the method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from torch import Tensor

from mtpeft.errors import MtpeftError
from mtpeft.peft.host import Host
from mtpeft.peft.memory import Key, Memory
from mtpeft.peft.method import Method
from mtpeft.peft.mounts import PartAtSite

if TYPE_CHECKING:
    from mtpeft.backbone.features import Features

M = TypeVar("M", bound=Method)
_STATE, _MEMORY = "state", "memory"
Targets = list[dict[str, Any]]
Batches = Iterable[tuple[str, Tensor, Targets]]
"""``(task, images (B, 3, H, W), targets)``, each batch of one task."""


@dataclass(frozen=True)
class TaskBatch:
    """One task's samples of the batch that is under way.

    Attributes:
        task: its name.
        keys: ``(task, index)`` of each sample, as `Memory` keeps them.
        images: ``(B, 3, H, W)``.
        targets: one for each image.
        features: what the host gave for them.
        outputs: of the task's head, before any routine adjusted them.
    """

    task: str
    keys: tuple[Key, ...]
    images: Tensor
    targets: Targets
    features: Features
    outputs: Any


class BatchSource(Protocol):
    """Passes over training data that disturb no draw of the training."""

    def __call__(self, *, train: bool = True, tasks: Sequence[str] | None = None) -> Batches:
        """Every training sample once, task by task.

        Args:
            train: augmented as in training; False prepares samples as evaluation does.
            tasks: whose data; the stage's own tasks by default. Earlier tasks' data is there only where the run has it.
        """


def no_loss(task: str, images: Tensor, targets: Targets) -> Tensor:
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


def no_samples(keys: Sequence[Key], visit: int) -> Batches:
    """Stands in a context that cannot load samples by key.

    Raises:
        MtpeftError: always.
    """
    raise MtpeftError("this method replays samples, and its context has none", hint="give Context a load")


def no_batches(*, train: bool = True, tasks: Sequence[str] | None = None) -> Batches:
    """Stands in a context without data: there is no batch."""
    return ()


@dataclass
class Context:
    """What a routine's hooks see of the training around them.

    Attributes:
        host: backbone, parts and heads.
        tasks: the tasks of this stage.
        seen: every task met so far, this stage's included.
        stage, stages: index of the stage, and how many there are (None where the schedule cannot tell).
        step, steps: update within the stage, and their number.
        classes: the stage's tasks -> names of their own classes, which are a part of their head's in a group.
        batch: the samples under way, task by task; set in `Routine.adjust`, `penalty`, `after_backward` and
            `after_step`, empty elsewhere.
        batches: passes over training data (`BatchSource`), for `Routine.calibrate` and closed-form heads.
        load: ``load(keys, visit)`` gives samples by key as ``(task, images, targets)``, augmented as in training;
            another ``visit`` draws other augmentations.
        loss: ``loss(task, images, targets) -> scalar``, the task's own loss on the host's current outputs.
        score: ``score(task, samples) -> float``, the task's metric on at most so many validation samples with the host
            as it is now, in evaluation mode; the higher, the better; None where it is undefined. Never the test split.
        seed: the run's; what a routine draws by itself comes from a generator keyed by it, the stage and the step.
    """

    host: Host
    tasks: tuple[str, ...] = ()
    seen: tuple[str, ...] = ()
    stage: int = 0
    stages: int | None = None
    step: int = 0
    steps: int = 0
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    batch: tuple[TaskBatch, ...] = ()
    batches: BatchSource = no_batches
    load: Callable[[Sequence[Key], int], Batches] = no_samples
    loss: Callable[[str, Tensor, Targets], Tensor] = no_loss
    score: Callable[[str, int], float | None] = no_score
    seed: int = 0

    def parts(self, method: Method, tasks: Sequence[str] | None = None) -> list[PartAtSite]:
        """The parts of ``method`` that act for any of ``tasks`` (the stage's), each once; those of frozen owners are
        left out, so that no hook can move them.
        """
        acting = self.host.parts_of(method, self.tasks if tasks is None else tasks)
        return [part for part in acting if part.owner not in self.host.frozen]


@dataclass(eq=False)
class Routine(Generic[M]):
    """Hooks of a stage, in the order they run. Override what is needed; the rest does nothing.

    ``begin_stage``: `calibrate`, `begin_stage`. Each update: `begin_update`; for each batch `adjust` (each task),
    `penalty`; then `after_backward`, `after_step`. Before each evaluation: `settle`. At the end: `end_stage`.

    What a routine keeps between calls is given by `state`: it is saved with the adapter, counted as memory, and there
    again after resuming, ``--from``, ``eval`` and `mtpeft.load`.

    Attributes:
        method: its configuration.
        memory: samples kept by key, saved with the state.
        watches: it wants the batches of stages in which nothing trains; without, these run no forward pass.
    """

    method: M
    memory: Memory = field(default_factory=Memory)
    watches = False

    def calibrate(self, context: Context) -> None:
        """Look at data before training (EVA, SPT, GPS, InfLoRA); in evaluation mode."""

    def begin_stage(self, context: Context) -> None:
        """A stage begins; in evaluation mode. The optimizer is made afterwards."""

    def trains(self, context: Context) -> Sequence[str]:
        """Further tasks whose parts and heads train in this stage (replay, classifier alignment)."""
        return ()

    def begin_update(self, context: Context) -> bool:
        """An update begins; its batches come next.

        Returns:
            Whether other tensors train from now on: the optimizer is made anew, and what stays keeps its moments.
        """
        return False

    def adjust(self, context: Context, task: str, outputs: Any, targets: Targets) -> tuple[Any, Targets]:
        """Outputs and targets as the loss of ``task`` is to see them, in training (local cross-entropy, pseudo-labels,
        logit adjustment, background shift).
        """
        return outputs, targets

    def penalty(self, context: Context) -> Tensor | None:
        """A scalar added to the loss of each batch; it may run the host. Balancers of gradients do not see it."""
        return None

    def after_backward(self, context: Context) -> None:
        """Gradients are complete; clipping and the optimizer's step come next."""

    def after_step(self, context: Context) -> None:
        """The optimizer has stepped: bring parameters back to where they may be (pruning, clipped norms)."""

    def settle(self, context: Context) -> None:
        """An evaluation comes next: solve closed-form heads; in evaluation mode, without gradient."""

    def end_stage(self, context: Context) -> None:
        """A stage ends; in evaluation mode."""

    def state(self) -> dict[str, Tensor]:
        """What must survive beside the parts' own tensors."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""

    def kept(self) -> dict[str, Tensor]:
        """State and memory, by name: what is saved with the adapter."""
        memory = {f"{_MEMORY}/{name}": tensor for name, tensor in self.memory.state().items()}
        return {f"{_STATE}/{name}": tensor for name, tensor in self.state().items()} | memory

    def give_back(self, kept: dict[str, Tensor]) -> None:
        """Take back what `kept` gave."""
        groups: dict[str, dict[str, Tensor]] = {_STATE: {}, _MEMORY: {}}
        for key, tensor in kept.items():
            group, _, name = key.partition("/")
            groups[group][name] = tensor
        self.restore(groups[_STATE])
        self.memory.restore(groups[_MEMORY])
