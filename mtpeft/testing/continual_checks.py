"""Checks of what a method does from one stage to the next: hooks, what routines keep, who is frozen, old answers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from safetensors.torch import load_file
from torch import Tensor, nn

from mtpeft.backbone import state_sha256
from mtpeft.peft.host import Host
from mtpeft.peft.method import must_be_told
from mtpeft.testing.case import STAGED, Case, owned, tensors
from mtpeft.testing.stages import FIRST, SECOND, STEPS, Stages

IN_EVALUATION = ("calibrate", "begin_stage", "settle", "end_stage")
IN_TRAINING = ("begin_update", "adjust", "penalty", "after_backward", "after_step")


def calls_hooks_in_order(case: Case) -> None:
    """Hooks run in the order that `Routine` documents, in the mode promised for each, and leave the mode as it was."""
    calls: list[tuple[str, bool]] = []
    stages = Stages(case)
    stages.meet(FIRST)
    with ExitStack() as watching:
        for name in (*IN_EVALUATION, *IN_TRAINING):
            for routine in stages.host.routines.values():
                hook = partial(_recorded, case, stages.host, calls, name, getattr(routine, name))
                watching.enter_context(patch.object(routine, name, hook))
        stages.run(FIRST)
    whole = [*IN_EVALUATION[:2], *IN_TRAINING * STEPS, *IN_EVALUATION[2:]]
    case.expect([name for name, _ in calls] == whole, f"the hooks ran as {', '.join(name for name, _ in calls)}")
    wrong = [name for name, training in calls if training is not (name in IN_TRAINING)]
    case.expect(not wrong, f"{', '.join(dict.fromkeys(wrong))} ran in the wrong mode")


def _recorded(
    case: Case, host: Host, calls: list[tuple[str, bool]], name: str, hook: Callable[..., Any], *args: Any
) -> Any:
    calls.append((name, host.training))
    given = hook(*args)
    case.expect(host.training is calls[-1][1], f"{name} leaves the host in another mode: use evaluating(host)")
    return given


def steps_what_gets_gradients(case: Case) -> None:
    """In a later stage, what no optimizer steps gets no gradient; frozen owners are handed to no hook."""
    stages = Stages(case)
    stages.run(FIRST)
    stages.begin(SECOND)
    stages.update()
    stepped = {id(parameter) for parameter in stages.training.trained.values()}
    loose = [n for n, p in stages.host.named_parameters() if p.grad is not None and id(p) not in stepped]
    case.expect(not loose, f"{len(loose)} tensors get gradients that no optimizer steps: {', '.join(loose[:3])}")
    stages.host.freeze(FIRST)
    stages.host.freeze("shared")
    handed = stages.training.context.parts(stages.training.method, list(STAGED))
    frozen = [placed.owner for placed in handed if placed.owner in stages.host.frozen]
    case.expect(not frozen, f"{len(frozen)} parts of frozen owners are handed to hooks")


def keeps_what_is_frozen(case: Case) -> None:
    """What is frozen at the end of a stage, or owned by its tasks alone, has the same hash after the next."""
    stages = Stages(case, group=False)
    stages.run(FIRST)
    still = {owner for owner in stages.host.owners() if owner in stages.host.frozen} | {FIRST}
    trained = set(stages.stage(SECOND).routines.trains())
    before = {owner: state_sha256(owned(stages.host, owner)) for owner in still - (trained - stages.host.frozen)}
    stages.run(SECOND)
    moved = [owner for owner, sha in before.items() if state_sha256(owned(stages.host, owner)) != sha]
    case.expect(not moved, f"the next stage moved what {' and '.join(moved)} owns")


def keeps_isolated_answers(case: Case) -> None:
    """Where nothing that acts for a task was trained in the next stage, its outputs stay bit-identical."""
    stages = Stages(case, group=False)
    stages.run(FIRST)
    before = stages.answers(FIRST)
    stages.run(SECOND)
    acting = stages.host.ownership.acting(FIRST)  # a later task's parts may have joined
    trained = {_holder(name) for name in stages.training.trained}
    if not acting & trained:
        case.same(stages.answers(FIRST), before, "outputs of an isolated task before and after a later stage")


def _holder(parameter: str) -> str:
    return parameter.partition("/")[0]


def resumes_in_a_later_stage(case: Case) -> None:
    """Stopped inside the second stage and continued from the adapter folder, everything ends with the same bits."""
    whole, stopped = Stages(case), Stages(case)
    for stages in (whole, stopped):
        stages.run(FIRST)
        stages.begin(SECOND)
        stages.update()
    resumed = _continued(case, stopped)
    for stages in (whole, resumed):
        stages.update()
        stages.training.end()
    case.expect(
        resumed.host.frozen == whole.host.frozen,
        f"frozen are {sorted(whole.host.frozen)}, and after resuming {sorted(resumed.host.frozen)}",
    )
    case.same(
        _everything(resumed.host), _everything(whole.host), "what is trained and kept, resumed and uninterrupted,"
    )
    for task in STAGED:
        case.same(resumed.answers(task), whole.answers(task), f"outputs of task {task}, resumed and uninterrupted,")


def _continued(case: Case, stopped: Stages) -> Stages:
    """A new host from the folder alone, as a run is opened: heads are built for all saved classes at once."""
    again = Stages(case, group=stopped.group, seed=1)
    with TemporaryDirectory() as folder:
        stopped.host.save(folder)
        for task in STAGED:
            again.host.add_task(task)
            if stopped.host.head_names[task] not in again.host.heads:
                head = stopped.host.head_of(task)
                again.host.add_head(stopped.host.head_names[task], case.head(again.host, head.classes))
        again.host.load(folder)
    again.training = again.stage(SECOND)
    again.training.context.step = stopped.training.context.step
    again.training.make_optimizer()
    if again.training.optimizer is not None and stopped.training.optimizer is not None:
        again.training.optimizer.load_state_dict(copy.deepcopy(stopped.training.optimizer.state_dict()))
    return again


def _everything(host: Host) -> dict[str, Any]:
    parts = {f"parts {owner}": host.tensors(owner) for owner in host.owners()}
    heads = {f"head {name}": head.state_dict() for name, head in host.heads.items()}
    return parts | heads | {f"kept {name}": routine.kept() for name, routine in host.routines.items()}


def counts_what_it_keeps(case: Case) -> None:
    """After a stage, what routines hold is what they save, and statistics are counted byte for byte as they are saved.

    A teacher or a table that is not part of `Routine.state` is neither resumed nor counted.
    """
    stages = Stages(case)
    stages.run(FIRST)
    host = stages.host
    for name, routine in host.routines.items():
        held, kept = _bytes(_held(routine)), _bytes(tensors(routine.kept()))
        case.expect(held <= kept, f"the routine of {name} holds {held} bytes of tensors, and its state has {kept}")
    with TemporaryDirectory() as folder:
        host.save(folder)
        saved = {path.name: load_file(path) for path in Path(folder).glob("*.safetensors")}
    whole = _bytes(tensors([routine.kept() for routine in host.routines.values()])) + host.count().buffers
    counted = whole + 4 * (host.count().parts + sum(host.count().heads.values()))
    case.expect(_bytes(tensors(saved)) == counted, f"{_bytes(tensors(saved))} bytes are saved, and {counted} counted")


def _held(value: Any) -> Iterator[Tensor]:
    """Tensors in an object's attributes, modules' included."""
    for attribute in vars(value).values():
        yield from tensors(attribute.state_dict() if isinstance(attribute, nn.Module) else attribute)


def _bytes(found: Iterator[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in found)


def passes_as_often_as_it_says(case: Case) -> None:
    """An image takes as many passes over the backbone, adapted and plain, as are declared; told its task, and not."""
    declares = case.method.declares
    stages = Stages(case)
    for count, task in enumerate(STAGED, 1):
        stages.meet(task)
        told = stages.group and not must_be_told(case.method, list(STAGED))
        declared = declares.inference_passes * (count if declares.passes_per_task and told else 1)
        passes = _passes(stages, task)
        case.expect(
            passes == declared,
            f"with {count} tasks an image takes {passes} passes over the backbone, and {declared} are declared",
        )


def _passes(stages: Stages, task: str) -> int:
    host = stages.host
    with patch.object(host, "run", wraps=host.run) as run, patch.object(host, "plain", wraps=host.plain) as plain:
        stages.answers(task)
    return run.call_count + plain.call_count
