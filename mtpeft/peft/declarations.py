"""Declarations: what a method says of itself, as one value that the conformance kit holds it to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Category = Literal["addition", "partial", "unified", "multitask", "continual"]
CATEGORIES: tuple[Category, ...] = get_args(Category)
"""The survey's, and where a method is listed."""


@dataclass(frozen=True, kw_only=True)
class Declarations:
    """`Method.declares`: a class attribute, or a property where the configuration decides.

    Attributes:
        category: one of `CATEGORIES`; empty where the method does not say.
        identity_at_init: attached and untrained, it leaves the outputs bit-identical.
        mergeable: its parts fold into plain timm weights.
        needs_task_id: it cannot run for a sample whose task is not known.
        needs_task_count: it must know how many stages there will be (`Context.stages`); no run adds tasks to it later.
        inference_passes: passes over the backbone for one batch, queries of the plain one included.
        passes_per_task: it takes as many for each task seen, where it is not told which.
        accepts: types of the tasks that its classifier or mechanism serves; empty for all.
        families: what it makes sense on, for people (the machine's word is the refusal itself).
        learning_rate: where a recipe gives none.
        paper: title, venue and number.
    """

    category: Category | Literal[""] = ""
    identity_at_init: bool = True
    mergeable: bool = False
    needs_task_id: bool = False
    needs_task_count: bool = False
    inference_passes: int = 1
    passes_per_task: bool = False
    accepts: tuple[str, ...] = ()
    families: str = ""
    learning_rate: float = 1e-3
    paper: str = ""
