"""Branches: a low-rank update for each task, all of which act for every sample; the earlier ones are frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mtpeft.api import SHARED, Context, Method


@dataclass
class BranchingMethod(Method):
    """``W + sum_s B_s A_s`` over the tasks ``s`` seen so far, whatever task is asked for: what is trained next
    moves all of them. Removing a task removes its branch. With ``scope = shared`` there is one, which all tasks train.
    """

    scope: Literal["shared", "task"] = "task"

    def owners(self, task: str | None, seen: Sequence[str]) -> tuple[str, ...]:
        return (SHARED,) if self.scope == SHARED else tuple(seen)


def freeze_earlier(context: Context) -> None:
    """Freeze the tasks of earlier stages, and let those of this stage train again if they were met before."""
    for task in context.seen:
        (context.host.unfreeze if task in context.tasks else context.host.freeze)(task)
