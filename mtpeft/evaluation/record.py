"""What must be known of a task to read its results."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import Field

from mtpeft.files import STRICT
from mtpeft.score import LARGEST

Number = Annotated[float, Field(gt=-LARGEST, lt=LARGEST)]


@dataclass(frozen=True)
class TaskRecord:
    """What must be known of a task to read its column.

    Attributes:
        type: its task type.
        metric: the metric's name.
        higher_is_better: the metric's direction.
        baseline: what the task reaches when trained alone (same backbone, method, budget and evaluation), if known.
        unit: of the metric, for tables.
        floor: what is reached without learning (chance, 0, or an untrained model), if known.
    """

    __pydantic_config__ = STRICT

    type: str
    metric: str
    higher_is_better: bool
    baseline: Number | None
    unit: str = ""
    floor: Number | None = None

    @property
    def sign(self) -> int:
        return 1 if self.higher_is_better else -1

    def to_dict(self) -> dict[str, Any]:
        """The four fields every file has, and those of the others that say something."""
        return {name: value for name, value in asdict(self).items() if name == "baseline" or value not in ("", None)}
