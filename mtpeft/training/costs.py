"""What a training has cost so far, in all and stage by stage, and what it cannot have made anyone forget."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, cast

from torch import Tensor

from mtpeft.evaluation import Costs, Parameters, StageCosts
from mtpeft.names import SHARED
from mtpeft.peft.routine import Routine
from mtpeft.training.position import Position
from mtpeft.training.run import Run
from mtpeft.training.run_files import peak_memory


def costs(run: Run, at: Position) -> Costs:
    """Of the whole training; the stages that are over are as they were recorded."""
    count = run.host.count()
    return Costs(
        Parameters(count.shared, dict(count.per_task), dict(count.heads), run.backbone_parameters),
        statistics_bytes=statistics_bytes(run),
        memory_bytes=memory_bytes(run),
        seconds=at.seconds,
        cpu_seconds=at.cpu_seconds,
        peak_memory_bytes=peak_memory(run.device),
        images_per_second=at.images / at.seconds if at.seconds else None,
        inference_passes=inference_passes(run),
        isolated=tuple(name for name in run.host.tasks if is_isolated(run, at, name)),
        stages=run.matrix.costs.stages if run.matrix.costs else (),
    )


def record_stage(run: Run, at: Position) -> None:
    """Put the costs of the stage that is over into the result matrix, which is saved with every state."""
    known = costs(run, at)
    run.matrix.costs = replace(known, stages=(*known.stages, stage_costs(run, at)))


def stage_costs(run: Run, at: Position) -> StageCosts:
    """Of the position's stage alone."""
    spent = at.spent()
    return StageCosts(
        at.stage,
        at.tasks,
        parameters=at.parameters,
        statistics_bytes=statistics_bytes(run),
        memory_bytes=memory_bytes(run),
        seconds=spent.seconds,
        cpu_seconds=spent.cpu_seconds,
        updates=spent.updates,
        images=spent.images,
        images_per_second=spent.images / spent.update_seconds if spent.update_seconds else None,
        inference_passes=inference_passes(run),
    )


def is_isolated(run: Run, at: Position, name: str) -> bool:
    """Whether no later training can have reached, or can reach, anything that acts for a task, its head included.

    A task that another run trained stays isolated only if it was isolated there.
    """
    own, head = run.host.ownership, run.host.heads.of_task.get(name)
    if name in run.inherited and not (run.matrix.costs and name in run.matrix.costs.isolated):
        return False
    last = max((index for index, tasks in enumerate(run.matrix.stages[: at.stage + 1]) if name in tasks), default=-1)
    joined = {SHARED} if SHARED not in own.frozen else set()
    joined |= {f"head:{head}"} if run.tasks[name].group else set()
    acting = own.acting(name)
    finished = all(at.trained.get(holder, -1) <= last for holder in acting)
    return finished and not acting & joined and not own.newcomers_act(name)


def statistics_bytes(run: Run) -> int:
    """What methods and heads keep beside parameters (class means, covariances, Gram matrices)."""
    return run.host.count().buffers + _bytes(t for routine in _routines(run) for t in routine.state().values())


def memory_bytes(run: Run) -> int:
    """Kept samples, as if their images were kept, with what is kept beside each."""
    return sum(routine.memory.bytes for routine in _routines(run))


def inference_passes(run: Run) -> int:
    """Passes of the backbone for one image."""
    heads, groups = run.host.head_names.values(), run.host.heads.groups
    untold = max((sum(name == head for name in heads) for head in groups), default=1)
    declared = (method.declares for method in run.host.methods.values())
    return max((d.inference_passes * (untold if d.passes_per_task else 1) for d in declared), default=1)


def _routines(run: Run) -> list[Routine[Any]]:
    return [cast("Routine[Any]", routine) for routine in run.host.routines.values()]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
