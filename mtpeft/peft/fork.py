"""Several tasks on the same images: what they share runs once, and the pass splits where their parts first differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mtpeft.peft.mounts import PartAtSite
from mtpeft.peft.route import Pass, Route, Segment
from mtpeft.peft.sites import Model

_BEHIND = ("final_norm", "features")
"""Sites outside the blocks that lie behind all of them."""


class CannotFork(Exception):
    """A pass carries what its parts left for later ones, and that belongs to one copy of each sample."""


def fork_block(model: Model, plans: Sequence[Sequence[PartAtSite]]) -> str | None:
    """Path of the first block at which the parts of several tasks differ; None where they differ before all blocks.

    Where they differ behind the blocks alone, or nowhere, it is the last block.
    """
    same = set(plans[0]).intersection(*plans[1:])
    differing = [part for plan in plans for part in plan if part not in same or part.per_task]
    inside = [part.site.block for part in differing if part.site.block is not None]
    outside = [part for part in differing if part.site.block is None]
    if not model.blocks or any(not part.site.name.startswith(_BEHIND) for part in outside):
        return None
    return model.blocks[min(inside, default=len(model.blocks) - 1)]


def forked(current: Pass, tasks: Sequence[str]) -> Pass:
    """The pass from the fork on: one copy of every sample for each task.

    Raises:
        CannotFork: where parts left something for later ones.
    """
    if any(current.scratch.values()):
        raise CannotFork
    copies, size = len(tasks), current.route.size
    segments = tuple(Segment(task, index * size, (index + 1) * size) for index, task in enumerate(tasks))
    carried = None if current.carried is None else repeated(current.carried, copies)
    given = {name: repeated(tensor, copies) for name, tensor in current.given.items()}
    return replace(current, route=Route(segments), one_plan=False, scratch={}, carried=carried, given=given, fork=None)


def repeated(tensor: Tensor, copies: int) -> Tensor:
    """``copies`` of a batch behind each other."""
    return torch.cat([tensor] * copies)
