"""What a run cost: parameters by owner, memory, time."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from mtpeft.files import STRICT, parse


@dataclass(frozen=True)
class Parameters:
    """Trained parameters by owner; none is counted twice.

    Attributes:
        shared: of parts that every task trains.
        tasks: of parts that one task owns, by task.
        heads: of heads, by task; a growing head stands under its group's name.
        backbone: the frozen backbone's, for percentages; None where not known.
    """

    __pydantic_config__ = STRICT

    shared: int = 0
    tasks: dict[str, int] = field(default_factory=dict)
    heads: dict[str, int] = field(default_factory=dict)
    backbone: int | None = None

    @property
    def parts(self) -> int:
        """Trained parameters without heads."""
        return self.shared + sum(self.tasks.values())

    @property
    def total(self) -> int:
        return self.parts + sum(self.heads.values())

    @property
    def shared_fraction(self) -> float | None:
        """Which part of all trained parameters every task trains, 0 to 1; None where nothing is trained."""
        return self.shared / self.total if self.total else None

    @property
    def percent(self) -> float | None:
        """Trained parts without heads, in percent of the backbone."""
        return 100 * self.parts / self.backbone if self.backbone else None

    def isolated(self, task: str) -> bool:
        """Whether no other task trains anything that ``task`` uses: then it forgets nothing, by construction."""
        return self.shared == 0 and task in self.heads


@dataclass(frozen=True)
class Costs:
    """One run's costs; None where not measured.

    Attributes:
        parameters: trained parameters by owner.
        statistics_bytes: what methods keep beside parameters (class means, covariances, Gram matrices).
        seconds: wall time of training.
        peak_memory_bytes: of the accelerator, or of the process on the CPU.
        images_per_second: training throughput.
        inference_passes: passes of the backbone for one image at test time.
        cpu_seconds: of training, all threads together: what a busy machine changes least.
    """

    __pydantic_config__ = STRICT

    parameters: Parameters = field(default_factory=Parameters)
    statistics_bytes: int = 0
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    images_per_second: float | None = None
    inference_passes: int = 1
    cpu_seconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(data: Any, where: str = "costs") -> Costs:
        """What `to_dict` gave.

        Raises:
            DataError: naming ``where`` and the field that is wrong.
        """
        return parse(Costs, data, where)
