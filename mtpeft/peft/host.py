"""The host: a frozen backbone, the parts on it, the heads behind it, and the task in force."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from mtpeft.backbone import full_name, state_sha256
from mtpeft.backbone.extract import Extractor, evaluating
from mtpeft.backbone.features import Features, FeaturesInfo
from mtpeft.errors import UsageError, did_you_mean
from mtpeft.peft import merging
from mtpeft.peft.answers import Answer, Rows, answers_of, features_of, predictions_of, rows_of
from mtpeft.peft.assembly import Assembly, check_methods, overrides_encode
from mtpeft.peft.contents import describe, take
from mtpeft.peft.gradients import TaskGradients
from mtpeft.peft.method import Method, Stateful
from mtpeft.peft.mounts import PartAtSite
from mtpeft.peft.original import OriginalState
from mtpeft.peft.ownership import Counts
from mtpeft.peft.route import Route
from mtpeft.peft.running import Running
from mtpeft.peft.store import AdapterContents, read_adapter, write_adapter
from mtpeft.peft.trace import native_size


class Host(nn.Module):
    """A timm model with methods attached: the one door to parts, heads, passes and files.

    Parts and heads take the backbone's device and dtype when they are added. What trains in half precision learns
    badly: for speed, leave the backbone in fp32 and run the host under `torch.autocast`.

    Args:
        backbone: a timm model; its parameters and buffers are frozen, and `detach` gives it back as it was.
        methods: ``(name, configured method)`` in the order they compose; names must differ.
        tasks: names of the tasks known now; more can be added later.
        image_size: (height, width) in pixels; default: the backbone's own.

    Attributes:
        routines: method -> what it does during training, where it does something.

    Raises:
        NotApplicable: where a method makes no sense on this backbone, or a part of it would never run.
        UsageError: for a pattern that matches nothing, a task name that cannot be used, or a backbone with a host.
    """

    def __init__(
        self,
        backbone: nn.Module,
        methods: Sequence[tuple[str, Method]] = (),
        tasks: Sequence[str] = (),
        *,
        image_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        check_methods(methods)
        self.backbone, self.methods = backbone, dict(methods)
        self.image_size = image_size or native_size(backbone)
        self.assembly = Assembly(backbone, self.methods, self.image_size, self._evaluated_pass)
        self.sites, self.attachments = self.assembly.sites, self.assembly.attachments
        self.parts, self.heads, self.ownership = self.assembly.parts, self.assembly.heads, self.assembly.ownership
        self.original = OriginalState(backbone)
        self.running = Running(Extractor(backbone, self.image_size), self.attachments, self.original)
        self.merged = merging.MergedWeights(self.attachments)
        self.routines = self._routines()
        backbone.requires_grad_(False)
        try:
            self.assembly.set_tasks(list(tasks), training=self.training)
        except Exception:
            self.detach()
            raise
        self.train(self.original.training)

    # --- tasks and their parts

    @property
    def tasks(self) -> list[str]:
        return self.ownership.tasks

    @property
    def frozen(self) -> set[str]:
        """The owners that train no more."""
        return self.ownership.frozen

    def add_task(self, name: str) -> None:
        """Make room for a task: its own parts, and its copies inside shared ones.

        Raises:
            UsageError: for a name that is taken or cannot be used.
        """
        if self.merged.active:
            raise UsageError("tasks cannot be added to a merged host", hint="call unmerge() first")
        self.assembly.set_tasks([*self.tasks, name], training=self.training)

    def remove_task(self, name: str) -> None:
        """Remove a task with everything it owns; what others own is untouched."""
        self._known(name)
        self.assembly.remove_task(name)

    def freeze(self, owner: str) -> None:
        """Stop training what ``owner`` (a task, or ``shared``) owns, its head included. It is saved with the adapter.

        Raises:
            UsageError: for an owner that the host does not have.
        """
        if owner not in self.owners():
            raise UsageError(f'the host has no owner "{owner}"', hint=did_you_mean(owner, self.owners()))
        self.frozen.add(owner)
        self.ownership.apply()

    def unfreeze(self, owner: str) -> None:
        self.frozen.discard(owner)
        self.ownership.apply()

    def _routines(self) -> dict[str, Stateful]:
        """What methods do during training; a memory says whose it is, and what an image counts."""
        made = {name: method.routine() for name, method in self.methods.items()}
        routines = {name: routine for name, routine in made.items() if routine is not None}
        for name, routine in routines.items():
            routine.memory.owner = name
            routine.memory.sample_bytes = self.sites[-1].model.input_channels * math.prod(self.image_size)
        return routines

    def _evaluated_pass(self, images: Tensor, route: Route) -> None:
        with evaluating(self):
            self.run(images, route)

    # --- running

    @property
    def info(self) -> FeaturesInfo:
        """The widths that heads are built for."""
        info = self.running.info()
        for method in self.methods.values():
            info = method.features_info(info, tuple(self.tasks))
        return info

    def forward(self, images: Tensor, task: str | Sequence[str | None] | None = None) -> Features:
        """Features of ``images (B, C, H, W)``, in their order.

        Args:
            task: one task for all, one for each sample (a mixed batch), or None where it is not known.

        Raises:
            UsageError: for an unknown task, no images, or as many tasks as there are not samples.
        """
        if not len(images):
            raise UsageError("the batch holds no images", hint="leave empty batches out")
        if task is None or isinstance(task, str):
            self._known(task)
            return self._encode(images, Route.single(task, len(images)))
        if len(task) != len(images):
            raise UsageError(
                f"{len(task)} tasks are given for {len(images)} images", hint="give one task for each image"
            )
        for name in set(task):
            self._known(name)
        route, order = Route.sorted(task)
        if order == list(range(len(order))):
            return self._encode(images, route)
        index = torch.tensor(order, device=images.device)
        return self._encode(images[index], route)[index.argsort()]

    def _encode(self, images: Tensor, route: Route) -> Features:
        if self.running.gradients is not None:
            self.running.gradients.begin(route)
        method = next(filter(overrides_encode, self.methods.values()), None)
        return self.run(images, route) if method is None else method.encode(self, images, route)

    def each(self, images: Tensor, tasks: Sequence[str] | Rows) -> dict[str, Features]:
        """Features of the same ``images (B, C, H, W)`` for several tasks.

        What they share runs once: the pass forks where their parts first differ.

        Args:
            tasks: their names, or for each task the rows of the images that it is asked for, at least one.
        """
        return features_of(self, images, self._rows(tasks, images))

    def answers(self, images: Tensor, tasks: Sequence[str] | Rows) -> dict[str, Answer]:
        """Features and outputs of each task's head for its rows of the same ``images``; see `each`."""
        return answers_of(self, images, self._rows(tasks, images))

    @overload
    def predict(self, images: Tensor, task: str) -> Any: ...

    @overload
    def predict(self, images: Tensor, task: Sequence[str] | Rows) -> dict[str, Any]: ...

    def predict(self, images: Tensor, task: str | Sequence[str] | Rows) -> Any:
        """The outputs of a task's head for ``images (B, C, H, W)``, or of several tasks' heads; see `each`.

        In evaluation a method may combine several passes (`Method.answer`), and the tasks of a group are not told.
        """
        rows = self._rows([task] if isinstance(task, str) else task, images)
        outputs = predictions_of(self, images, rows)
        return outputs[task] if isinstance(task, str) else outputs

    def _rows(self, tasks: Sequence[str] | Rows, images: Tensor) -> Rows:
        for task in tasks:
            self._known(task)
        return rows_of(tasks, len(images))

    def run(self, images: Tensor, route: Route, given: Mapping[str, Tensor] | None = None) -> Features:
        """One host pass, or one for each task where the active parts do not allow a mixed one.

        Args:
            given: tensors ``(B, ...)`` for parts to read with `Part.given`.
        """
        return self.running.run(images, route, given)

    def plain(self, images: Tensor) -> Features:
        """Features of the plain backbone, as if no part were there: in evaluation mode and without gradient.

        Raises:
            UsageError: while parts are merged into the weights.
        """
        if self.merged.active:
            raise UsageError("parts are merged into the backbone, so there is no plain one", hint="call unmerge()")
        return self.running.plain(images)

    def train(self, mode: bool = True) -> Host:
        """Training mode, for dropout and drop path of the backbone too; only its running statistics stay frozen."""
        super().train(mode)
        for module in self.backbone.modules():
            if isinstance(module, _NormBase):
                module.eval()
        return self

    def checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations.

        Raises:
            NotApplicable: where the backbone does not support it.
        """
        self.original.recompute(enable)

    def task_gradients(self) -> AbstractContextManager[TaskGradients]:
        """Keep each task's gradient of the shared parts apart, for batches whose samples each belong to one task.

        Example::

            with host.task_gradients() as gradients:
                loss(host(images, tasks)).backward()
            gradients.jacobian()     # (T, P): one row for each task
        """
        return self.running.keeping_gradients(TaskGradients(self.shared_parameters()))

    # --- heads

    def add_head(self, name: str, head: nn.Module, *, group: bool = False) -> None:
        """A head, moved to the backbone's device and dtype; its parameters that need no gradient never train.

        Args:
            group: tasks of a class-incremental group share it, and testing does not tell them apart.

        Raises:
            UsageError: for a name that no file can have.
        """
        self.heads.add(name, head, next(self.backbone.parameters()), training=self.training, group=group)

    def bind_head(self, task: str, name: str) -> None:
        """The head that ``task`` uses; tasks of a group share one.

        Raises:
            UsageError: for an unknown task, or a head that was not added.
        """
        self._known(task)
        self.heads.bind(task, name)
        self.ownership.apply()

    @property
    def head_names(self) -> dict[str, str]:
        """Task -> the head it uses."""
        return self.heads.of_task

    def head_of(self, task: str) -> Any:
        self._known(task)
        return self.heads.of(task)

    # --- what is trained, counted, saved

    def parts_of(self, method: Method, tasks: Sequence[str]) -> list[PartAtSite]:
        """The parts of ``method`` that act for any of ``tasks``, each once, with its site and owner.

        A routine asks `Context.parts`, which leaves frozen owners out.
        """
        plans = [self.parts.active_parts(task, self.tasks) for task in tasks]
        return list(dict.fromkeys(p for plan in plans for p in plan if self.methods[p.method] is method))

    def owners(self) -> list[str]:
        """``shared`` and the tasks, whether or not they own anything."""
        return self.ownership.owners

    def tensors(self, owner: str) -> dict[str, Tensor]:
        """Everything ``owner`` owns, heads apart: ``METHOD/SITE/TENSOR`` (site ``common``: what parts share)."""
        return self.parts.tensors(owner)

    def shared_parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters of the shared owner, without per-task copies."""
        return self.ownership.shared_parameters()

    def trainable(self, tasks: Sequence[str]) -> dict[str, nn.Parameter]:
        """What training ``tasks`` changes: ``OWNER/METHOD/SITE/TENSOR`` of parts, ``head:NAME/TENSOR`` of heads."""
        return self.ownership.trainable(tasks)

    def focus(self, tasks: Sequence[str] | None) -> None:
        """Let only what ``tasks`` train get a gradient; None: everything that is not frozen."""
        self.ownership.focus(tasks)

    def count(self) -> Counts:
        """Trained parameters by owner, and bytes of buffers."""
        return self.ownership.count()

    def merged_state(self, task: str | None = None) -> dict[str, Tensor]:
        """A state dict for the plain timm model, with ``task``'s parts folded in.

        Raises:
            NotApplicable: naming the part that cannot be folded, and why.
        """
        self._known(task)
        merged = merging.merged_tensors(self.attachments, self.parts.active_parts(task, self.tasks), task)
        return merging.plain_state(self.backbone, merged)

    def merge(self, task: str | None = None) -> None:
        """Fold ``task``'s parts into the backbone's weights; only this task can run until `unmerge`."""
        self._known(task)
        self.merged.merge(self.parts.active_parts(task, self.tasks), task)

    def unmerge(self) -> None:
        """Bring the weights back, bit for bit, from a kept copy."""
        self.merged.unmerge()

    def detach(self) -> nn.Module:
        """The backbone as it was before: keys, classes, hooks, flags and values."""
        self.unmerge()
        self.attachments.detach()
        self.original.restore()
        return self.backbone

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """``name`` and ``sha256`` of the frozen backbone. Frozen means frozen: it is computed once."""
        return {"name": full_name(self.backbone), "sha256": state_sha256(self.merged.frozen_state())}

    def contents(self, extra: dict[str, Any] | None = None) -> AdapterContents:
        """What makes this host, as a value: tensors by owner, heads, what routines keep, and how to build it again."""
        return describe(self, extra or {})

    def save(self, directory: str | Path, extra: dict[str, Any] | None = None) -> None:
        """Write the adapter folder: one safetensors file for each owner, heads apart, ``adapter.json``; in one step.

        Raises:
            MtpeftError: where it cannot be written; what was there stays.
        """
        write_adapter(self.contents(extra), Path(directory))

    def load(self, directory: str | Path) -> dict[str, Any]:
        """Read what `save` wrote into this host; returns the ``extra``.

        Rows of heads follow the names of their classes: a head takes over the saved order.

        Raises:
            MtpeftError: for another backbone, another method or task, or a damaged file; the host is then unchanged.
        """
        contents = read_adapter(Path(directory))
        take(self, contents)
        return contents.extra

    def _known(self, task: str | None) -> None:
        if task is not None and task not in self.tasks:
            raise UsageError(f'the host has no task "{task}"', hint=did_you_mean(task, self.tasks))
        if self.merged.active and task != self.merged.task:
            raise UsageError(
                f"the host is merged for {self.merged.task!r}, not for {task!r}", hint="call unmerge() first"
            )
