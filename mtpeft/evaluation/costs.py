"""What a run cost: parameters by owner, memory, time; in all and for each stage."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from pydantic import Field

from mtpeft.files import STRICT, parse

Amount = Annotated[int, Field(ge=0, lt=2**63)]
Quantity = Annotated[float, Field(ge=0, le=2**63)]


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

    shared: Amount = 0
    tasks: dict[str, Amount] = field(default_factory=dict)
    heads: dict[str, Amount] = field(default_factory=dict)
    backbone: Amount | None = None

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


@dataclass(frozen=True)
class StageCosts:
    """One stage's costs; None where not measured.

    Attributes:
        stage: counted from 0.
        tasks: that it trained.
        parameters: trained in this stage.
        statistics_bytes: what methods keep beside parameters when it ends (class means, covariances, Gram matrices).
        memory_bytes: kept samples (exemplars) when it ends, with what is kept beside each.
        seconds: wall time of the whole stage, what methods do at its begin and end included, evaluations not.
        cpu_seconds: of the same, all threads together.
        updates: optimizer steps.
        images: trained on, each visit counted.
        images_per_second: throughput of the updates alone.
        inference_passes: passes of the backbone for one image after this stage.
    """

    __pydantic_config__ = STRICT

    stage: Amount
    tasks: tuple[str, ...]
    parameters: Amount = 0
    statistics_bytes: Amount = 0
    memory_bytes: Amount = 0
    seconds: Quantity | None = None
    cpu_seconds: Quantity | None = None
    updates: Amount = 0
    images: Amount = 0
    images_per_second: Quantity | None = None
    inference_passes: Amount = 1


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
        memory_bytes: kept samples (exemplars), with what is kept beside each.
        isolated: the tasks nothing of which another task trains: of all owners that act for them, head included, none
            is trained by another task. They forget nothing, by construction. No count of parameters can say so; who
            trains does.
        stages: each stage's own, in order; empty where they were not measured apart.
    """

    __pydantic_config__ = STRICT

    parameters: Parameters = field(default_factory=Parameters)
    statistics_bytes: Amount = 0
    seconds: Quantity | None = None
    peak_memory_bytes: Amount | None = None
    images_per_second: Quantity | None = None
    inference_passes: Amount = 1
    cpu_seconds: Quantity | None = None
    memory_bytes: Amount = 0
    isolated: tuple[str, ...] = ()
    stages: tuple[StageCosts, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, with lists for tuples."""
        return json.loads(json.dumps(asdict(self)))

    @staticmethod
    def from_dict(data: Any, where: str = "costs") -> Costs:
        """What `to_dict` gave; fields that older files lack are as if not measured.

        Raises:
            DataError: naming ``where`` and the field that is wrong.
        """
        return parse(Costs, data, where)
