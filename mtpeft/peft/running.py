"""Running the adapted backbone under a route, the cheapest exact way; and the plain one beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

import torch
from torch import Tensor, nn

from mtpeft.backbone.extract import Extractor, evaluating
from mtpeft.backbone.features import Features, FeaturesInfo
from mtpeft.peft.attach import Attachments
from mtpeft.peft.fork import CannotFork, copied, fork_block, forked
from mtpeft.peft.gradients import TaskGradients
from mtpeft.peft.original import OriginalState
from mtpeft.peft.route import Fork, Pass, Route, TokenLayout


class Running:
    """Passes of one backbone.

    Args:
        extractor: timm model in, features out.
        attachments: the parts on the backbone; they share its pass state.
        original: says whether blocks are recomputed.

    Attributes:
        gradients: the views that keep each task's gradients apart, or None.
    """

    def __init__(self, extractor: Extractor, attachments: Attachments, original: OriginalState) -> None:
        self.extractor, self.attachments, self.original = extractor, attachments, original
        self.pass_state = attachments.pass_state
        self.gradients: TaskGradients | None = None

    @property
    def backbone(self) -> nn.Module:
        return self.attachments.backbone

    def info(self) -> FeaturesInfo:
        """Widths of the plain backbone's features."""
        with self.pass_state.silent():
            return self.extractor.info(self.backbone)

    @torch.no_grad()
    def plain(self, images: Tensor) -> Features:
        """The backbone without any part, in evaluation mode; a pass in progress goes on as it was."""
        with self.pass_state.silent(), evaluating(self.backbone):
            self.pass_state.enter(Pass(Route.single(None, len(images)), TokenLayout()))
            return self.extractor(self.backbone, images)

    def run(self, images: Tensor, route: Route, given: Mapping[str, Tensor] | None = None) -> Features:
        """One pass, or one for each task where the active parts do not allow a mixed one."""
        given, segments = given or {}, route.segments
        apart = self.gradients is not None
        if len(segments) == 1 or self.attachments.can_share_pass(route.tasks, per_task_gradients=apart):
            return self._pass(images, route, given=given)
        pieces = []
        for index, s in enumerate(segments):
            own = {name: tensor[s.start : s.stop] for name, tensor in given.items()}
            pieces.append(self._pass(images[s.start : s.stop], Route.single(s.task, s.stop - s.start), index, own))
        return Features.cat(pieces)

    def each(self, images: Tensor, rows: Mapping[str, Sequence[int]]) -> Features:
        """The features of each task's ``rows`` of the images, one task after another.

        What the tasks share runs once for an image, unless each task's gradients are kept apart.
        """
        index = tuple(row for own in rows.values() for row in own)
        route = Route.of({task: len(own) for task, own in rows.items()})
        block = self._fork_block(route.tasks) if len(index) > len(images) else None
        if block is not None:
            with suppress(CannotFork):
                fork = Fork(block, route, index, len(images))
                return self._pass(images, Route.single(next(iter(rows)), len(images)), fork=fork)
        return self.run(copied(images, index, len(images)), route)

    @contextmanager
    def keeping_gradients(self, gradients: TaskGradients) -> Iterator[TaskGradients]:
        """Inside, every segment reads its task's views of the shared parameters."""
        self.gradients = gradients
        try:
            yield gradients
        finally:
            self.gradients = None

    def _fork_block(self, tasks: Sequence[str | None]) -> str | None:
        """The block before which a pass of several tasks on the same images forks; None where it cannot."""
        attachments = self.attachments
        if self.gradients is not None or not attachments.can_share_pass(tasks, per_task_gradients=False):
            return None
        return fork_block(attachments.model, [attachments.plans.get(task, ()) for task in tasks])

    def _pass(
        self,
        images: Tensor,
        route: Route,
        first: int = 0,
        given: Mapping[str, Tensor] | None = None,
        fork: Fork | None = None,
    ) -> Features:
        self.pass_state.tagging = self.original.recomputing()
        size = (images.shape[-2], images.shape[-1])
        layout = TokenLayout(self.extractor.prefix, *self.extractor.grid(self.backbone, size), size)
        side = self.attachments.side
        tasks = route.tasks if fork is None else fork.route.tasks
        taps: list[Tensor] | None = [] if any(side.active(task) for task in tasks) else None
        views = self.gradients.current if self.gradients is not None else None
        one_plan = fork is not None or (self.gradients is None and self.attachments.same_plan(route.tasks))
        self.pass_state.enter(
            Pass(route, layout, first, views, taps=taps, one_plan=one_plan, given=given or {}, fork=fork)
        )
        features = self.extractor(self.backbone, images)
        if taps is not None:
            features = self._beside(replace(features, taps=tuple(taps)), fork)
        return features if fork is None else _copied_features(features, fork)

    def _beside(self, features: Features, fork: Fork | None) -> Features:
        """Run the side parts on the finished features and the blocks' outputs."""
        side = self.attachments.side
        if fork is not None:
            if self.pass_state.current.fork is not None and not self.attachments.same_plan(fork.route.tasks):
                self.pass_state.enter(forked(self.pass_state.current, fork))
            if self.pass_state.current.fork is None:
                features = _copied_features(features, fork)
        pieces = []
        for index, segment, plan in side.spans():
            piece = features[segment.start : segment.stop]
            for part in plan:
                piece = side.run(part, index, segment, piece)
            pieces.append(piece)
        return replace(Features.cat(pieces), taps=())


def _copied_features(features: Features, fork: Fork) -> Features:
    """Features of a pass that forks, with each task's copies in all of them, also in what was read before the fork."""
    return features.each(lambda t: copied(t, fork.rows, fork.size) if len(t) == fork.size else t)
