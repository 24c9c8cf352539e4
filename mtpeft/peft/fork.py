"""Several tasks on the same images: what they share runs once, and the pass splits where their parts first differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mtpeft.peft.mounts import PartAtSite
from mtpeft.peft.route import Fork, Pass
from mtpeft.peft.sites import Model

BEHIND = ""
"""Stands for a block behind all others: nothing differs in the backbone."""
Plan = Sequence[PartAtSite]


class CannotFork(Exception):
    """A pass carries what its parts left for later ones, and that belongs to one copy of each sample."""


def fork_block(model: Model, plans: Sequence[Plan]) -> str | None:
    """Path of the first block at which the parts of several tasks differ; None where they differ before all blocks.

    It is the last block where they differ at the final norm alone, and `BEHIND` where they differ in side parts alone,
    or nowhere.
    """
    differing = set(_differing(plans))
    blocks = [place for place in differing if isinstance(place, int)]
    outside = {place for place in differing if isinstance(place, str)} - {"features"}
    if not outside and not blocks:
        return BEHIND
    if not model.blocks or any(not place.startswith("final_norm") for place in outside):
        return None
    return model.blocks[min(blocks, default=len(model.blocks) - 1)]


def _differing(plans: Sequence[Plan]) -> Iterator[int | str]:
    """The parts of each place at which plans differ, or a part has copies for tasks."""
    for place in dict.fromkeys(_place(part) for plan in plans for part in plan):
        here = [[part for part in plan if _place(part) == place] for plan in plans]
        if any(parts != here[0] for parts in here[1:]) or any(part.per_task for part in here[0]):
            yield place


def _place(part: PartAtSite) -> int | str:
    """The block, or outside of blocks the site."""
    return part.site.name if part.site.block is None else part.site.block


def forked(current: Pass, fork: Fork) -> Pass:
    """The pass from the fork on: each task's own copy of its samples.

    Raises:
        CannotFork: where parts left something for later ones.
    """
    if any(current.scratch.values()):
        raise CannotFork
    carried = None if current.carried is None else copied(current.carried, fork.rows, fork.size)
    given = {name: copied(tensor, fork.rows, fork.size) for name, tensor in current.given.items()}
    return replace(current, route=fork.route, one_plan=False, scratch={}, carried=carried, given=given, fork=None)


def copied(tensor: Tensor, rows: Sequence[int], size: int) -> Tensor:
    """The ``rows`` of a batch of ``size`` samples, of each of which ``tensor (size n, ...)`` may hold n pieces."""
    index = torch.tensor(rows, device=tensor.device)
    if len(tensor) == size:
        return tensor[index]
    return tensor.unflatten(0, (size, -1))[index].flatten(0, 1)
