"""The parts of a host on its backbone: built for every owner, attached, and proved live."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from mtpeft.errors import NotApplicable, UsageError
from mtpeft.names import check_task_name
from mtpeft.peft.attach import Attachments, is_attached
from mtpeft.peft.find_sites import find_sites
from mtpeft.peft.heads import Heads
from mtpeft.peft.method import Method
from mtpeft.peft.owned_parts import OwnedParts
from mtpeft.peft.ownership import Ownership
from mtpeft.peft.pattern import select
from mtpeft.peft.proving import Proofs
from mtpeft.peft.route import PassState, Route
from mtpeft.peft.sites import Site
from mtpeft.settings import check


class Assembly:
    """What is attached to one backbone.

    Args:
        methods: name -> configured method, in the order they compose.
        image_size: height and width of the probing images, in pixels.
        run: one pass of the host in evaluation mode, to see which parts run.

    Raises:
        UsageError: for settings out of range, a pattern that matches nothing, or a backbone with a host.
        NotApplicable: where a method makes no sense on this backbone.
    """

    def __init__(
        self,
        backbone: nn.Module,
        methods: Mapping[str, Method],
        image_size: tuple[int, int],
        run: Callable[[torch.Tensor, Route], object],
    ) -> None:
        if is_attached(backbone):
            raise UsageError(
                "this backbone has a host already",
                hint="call detach() on that host first, or load another backbone",
            )
        self.backbone, self.image_size, self.run = backbone, image_size, run
        self.sites = find_sites(backbone, image_size)
        chosen = {name: self._select(method) for name, method in methods.items()}
        self.pass_state = PassState()
        self.attachments = Attachments(backbone, self.sites[-1].model, self.pass_state)
        self.parts, self.heads = OwnedParts(methods, chosen, self.pass_state), Heads()
        self.ownership = Ownership(self.parts, self.heads)
        self.proofs = Proofs(self.pass_state, self._probe)

    def set_tasks(self, tasks: list[str], *, training: bool) -> None:
        """Build and attach what is missing for ``tasks``; where that is refused, everything is as before.

        Raises:
            UsageError: for a name that is taken or cannot be used.
            NotApplicable: where a part would never run.
        """
        for index, name in enumerate(tasks):
            check_task_name(name, tasks[:index])
        own = self.ownership
        before, own.tasks = own.tasks, tasks
        try:
            self.parts.build_missing(tasks, next(self.backbone.parameters()))
            self.attach()
            self.proofs.prove(self.attachments.plans.items(), type(self.backbone).__name__)
            self.parts.train(training)
        except Exception:
            own.tasks = before
            for name in set(tasks) - set(before):
                self.parts.remove(name)
            self.attach()
            raise

    def remove_task(self, name: str) -> None:
        """Remove a task with everything it owns."""
        self.parts.remove(name)
        self.heads.drop(name)
        self.ownership.tasks.remove(name)
        self.ownership.frozen.discard(name)
        self.attach()

    def attach(self) -> None:
        """Attach the parts that act for each task now."""
        tasks = self.ownership.tasks
        self.attachments.detach()
        self.attachments.attach({task: self.parts.active_parts(task, tasks) for task in (None, *tasks)})
        self.ownership.apply()

    def _select(self, method: Method) -> list[Site]:
        """The sites of a method; where its own pattern finds none, it is the method that makes no sense here."""
        if not method.at:
            return []
        try:
            return select(self.sites, method.at, method.blocks)
        except UsageError as error:
            if (method.at, method.blocks) != (type(method).at, type(method).blocks):
                raise
            raise NotApplicable(error.message, hint=error.hint) from None

    @torch.no_grad()
    def _probe(self, task: str | None) -> None:
        """One pass over an empty image."""
        parameter = next(self.backbone.parameters())
        channels = self.sites[-1].model.input_channels
        images = torch.zeros(1, channels, *self.image_size, device=parameter.device, dtype=parameter.dtype)
        self.run(images, Route.single(task, 1))


def check_methods(methods: Sequence[tuple[str, Method]]) -> None:
    """
    Raises:
        UsageError: for two methods of one name, or settings out of range.
        NotApplicable: where two methods say how images become features, or answers.
    """
    if len(dict(methods)) != len(methods):
        raise UsageError("two methods have one name", hint="give each method of a composition a name of its own")
    for name, method in methods:
        check(method, name)
    _refuse_several("encode", "how images become features", [name for name, made in methods if overrides_encode(made)])
    _refuse_several("answer", "how passes become an answer", [name for name, made in methods if overrides_answer(made)])


def _refuse_several(hook: str, what: str, names: Sequence[str]) -> None:
    if len(names) > 1:
        raise NotApplicable(
            f"{' and '.join(names)} each say {what}, and only one can",
            hint=f"compose methods of which at most one overrides {hook}",
        )


def overrides_encode(method: Method) -> bool:
    """Whether a method says how images become features."""
    return type(method).encode is not Method.encode


def overrides_answer(method: Method) -> bool:
    """Whether a method combines passes or logits in evaluation."""
    return type(method).answer is not Method.answer
