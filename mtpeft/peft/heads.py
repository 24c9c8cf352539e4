"""Heads by description, so that a saved adapter can build them again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mtpeft.backbone.features import FeaturesInfo
from mtpeft.plugins import resolve


@dataclass
class HeadSpec:
    """What a head is built from.

    Attributes:
        type: the task type whose head it is (``cls``, ``det``, ``seg``, or a plugin's).
        classes: names of its classes.
        settings: fields of the task type, such as ``head_config``.
    """

    type: str
    classes: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    def build(self, info: FeaturesInfo) -> Any:
        task = resolve("tasks", self.type)(**self.settings)
        head = task.head(info, self.classes)
        head.spec = self
        return head

    def to_json(self, classes: Sequence[str]) -> dict[str, Any]:
        """``classes`` are the head's own, which may have grown."""
        return {"type": self.type, "classes": list(classes), "settings": self.settings}


def head(type: str, classes: Sequence[str], **settings: Any) -> HeadSpec:
    """Describe a task's head for `mtpeft.adapt`: ``head("cls", ["cat", "dog"])``."""
    return HeadSpec(type, tuple(classes), settings)
