"""The host: a frozen backbone, the parts on it, the heads behind it, and the task in force."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import timm.layers
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from mtpeft.addresses import ParameterKey
from mtpeft.backbone import full_name, state_sha256
from mtpeft.backbone.extract import Extractor, evaluating
from mtpeft.backbone.features import Features, FeaturesInfo
from mtpeft.errors import NotApplicable, UsageError, did_you_mean
from mtpeft.names import SHARED, check_head_name, check_task_name
from mtpeft.peft import merging, store
from mtpeft.peft.attach import Attachments, is_attached
from mtpeft.peft.find_sites import find_sites
from mtpeft.peft.gradients import TaskGradients
from mtpeft.peft.method import Method
from mtpeft.peft.module_map import ModuleMap
from mtpeft.peft.mounts import PartAtSite
from mtpeft.peft.owned_parts import OwnedParts
from mtpeft.peft.pattern import select
from mtpeft.peft.route import Pass, PassState, Route, TokenLayout
from mtpeft.peft.sites import Site
from mtpeft.peft.trace import native_size
from mtpeft.settings import check


@dataclass
class Counts:
    """Trained parameters, heads apart.

    Attributes:
        shared: in parts (and `PerTask` copies apart) that every task trains.
        per_task: task -> parameters it owns.
        heads: head -> its parameters.
        buffers: bytes of fixed state (masks, random bases) kept beside the parameters.
    """

    shared: int = 0
    per_task: dict[str, int] = field(default_factory=dict)
    heads: dict[str, int] = field(default_factory=dict)
    buffers: int = 0

    @property
    def parts(self) -> int:
        return self.shared + sum(self.per_task.values())


class Host(nn.Module):
    """A timm model with methods attached.

    OwnedParts and heads take the backbone's device and dtype when they are added. What trains in half precision learns
    badly: for speed, leave the backbone in fp32 and run the host under `torch.autocast`.

    Args:
        backbone: a timm model; its parameters and buffers are frozen, and `detach` gives it back as it was.
        methods: ``(name, configured method)`` in the order they compose; names must differ.
        tasks: names of the tasks known now; more can be added later.
        image_size: (height, width) in pixels; default: the backbone's own.

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
        if is_attached(backbone):
            raise UsageError(
                "this backbone has a host already",
                hint="call detach() on that host first, or load another backbone",
            )
        self.backbone, self.methods = backbone, dict(methods)
        if len(self.methods) != len(methods):
            raise UsageError("two methods have one name", hint="give each method of a composition a name of its own")
        for name, method in methods:
            check(method, name)
        encoders = [name for name, method in methods if type(method).encode is not Method.encode]
        if len(encoders) > 1:
            raise NotApplicable(
                f"{' and '.join(encoders)} each say how images become features, and only one can",
                hint="compose methods of which at most one overrides encode",
            )
        self.image_size = image_size or native_size(backbone)
        self.pass_state = PassState()
        self.extractor = Extractor(backbone, self.image_size)
        self.sites = find_sites(backbone, self.image_size)
        chosen = {name: self._select(method) for name, method in self.methods.items()}
        self.parts, self.heads = OwnedParts(self.methods, chosen, self.pass_state), ModuleMap()
        self.tasks: list[str] = []
        self.head_names: dict[str, str] = {}
        self.frozen: set[str] = set()
        self.fixed: dict[str, set[str]] = {}
        self.attachments = Attachments(backbone, self.sites[-1].model, self.pass_state)
        self.probed_plans: set[tuple[tuple[str, str], ...]] = set()
        self.gradients: TaskGradients | None = None
        self.unmerged_copy: dict[tuple[str, str], Tensor] | None = None
        self.merged_task: str | None = None
        self._flags = {name: parameter.requires_grad for name, parameter in backbone.named_parameters()}
        self._modes = {path: module.training for path, module in backbone.named_modules()}
        # where timm says whether blocks are recomputed, and what it said before
        self._recomputes = {m: m.grad_checkpointing for m in backbone.modules() if "grad_checkpointing" in vars(m)}
        backbone.requires_grad_(False)
        try:
            self._change(list(tasks))
        except Exception:
            self.detach()
            raise
        self.train(self._modes[""])

    # --- tasks and their parts

    def add_task(self, name: str) -> None:
        """Make room for a task: its own parts, and its copies inside shared ones.

        Raises:
            UsageError: for a name that is taken or cannot be used.
        """
        self._change([*self.tasks, name])

    def remove_task(self, name: str) -> None:
        """Remove a task with everything it owns; what others own is untouched."""
        self._known(name)
        self.parts.remove(name)
        head = self.head_names.pop(name, None)
        if head is not None and head not in self.head_names.values():
            del self.heads[head], self.fixed[head]
        self.tasks.remove(name)
        self.frozen.discard(name)
        self._rewire()

    def freeze(self, owner: str) -> None:
        """Stop training what ``owner`` (a task, or ``shared``) owns, its head included.

        Raises:
            UsageError: for an owner that the host does not have.
        """
        if owner not in self.owners():
            raise UsageError(f'the host has no owner "{owner}"', hint=did_you_mean(owner, self.owners()))
        self.frozen.add(owner)
        self._apply_frozen()

    def unfreeze(self, owner: str) -> None:
        self.frozen.discard(owner)
        self._apply_frozen()

    def _change(self, tasks: list[str]) -> None:
        if self.unmerged_copy is not None:
            raise UsageError("tasks cannot be added to a merged host", hint="call unmerge() first")
        for index, name in enumerate(tasks):
            check_task_name(name, tasks[:index])
        before, self.tasks = self.tasks, tasks
        try:
            self.parts.build_missing(tasks, next(self.backbone.parameters()))
            self._rewire()
            self._refuse_idle_parts()
            self.parts.train(self.training)
        except Exception:
            self.tasks = before
            for name in set(tasks) - set(before):
                self.parts.remove(name)
            self._rewire()
            raise

    def _select(self, method: Method) -> list[Site]:
        """The sites of a method; where its own pattern finds none, it is the method that makes no sense here."""
        if not method.at:
            return []
        try:
            return select(self.sites, method.at, method.blocks)
        except UsageError as error:
            if (method.at, method.blocks) != (type(method).at, type(method).blocks):
                raise
            raise NotApplicable(error.message, hint=error.hint) from None

    def _rewire(self) -> None:
        self.attachments.detach()
        self.attachments.attach({task: self.parts.active_parts(task, self.tasks) for task in (None, *self.tasks)})
        self._apply_frozen()

    @torch.no_grad()
    def _refuse_idle_parts(self) -> None:
        """Run once for every kind of plan, and refuse if a part did not run."""
        for task in (None, *self.tasks):
            plan = self.parts.active_parts(task, self.tasks)
            key = tuple((p.method, p.site.name) for p in plan)
            if not plan or key in self.probed_plans or (task is None and any(p.per_task for p in plan)):
                continue
            ran = self._parts_that_run(task)
            idle = next((p for p in plan if id(p.part) not in ran), None)
            if idle is not None:
                raise NotApplicable(
                    f"{idle.method} has a part at {idle.site.name} that {type(self.backbone).__name__} never runs"
                )
            self.probed_plans.add(key)

    def _parts_that_run(self, task: str | None) -> set[int]:
        self.pass_state.seen_running = set()
        parameter = next(self.backbone.parameters())
        images = torch.zeros(1, 3, *self.image_size, device=parameter.device, dtype=parameter.dtype)
        try:
            with evaluating(self):
                self.run(images, Route.single(task, 1))
            return self.pass_state.seen_running
        finally:
            self.pass_state.seen_running = None

    # --- running

    @property
    def info(self) -> FeaturesInfo:
        """The widths that heads are built for."""
        merged, self.pass_state.merged = self.pass_state.merged, True  # the probe sees the backbone alone
        try:
            info = self.extractor.info(self.backbone)
        finally:
            self.pass_state.merged = merged
        for method in self.methods.values():
            info = method.features_info(info)
        return info

    def forward(self, images: Tensor, task: str | Sequence[str | None] | None = None) -> Features:
        """Features of ``images (B, 3, H, W)``, in their order.

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

    def predict(self, images: Tensor, task: str) -> Any:
        """The task's head on the features of ``images``."""
        return self.head_of(task)(self(images, task))

    def run(self, images: Tensor, route: Route) -> Features:
        """One host pass, or one for each task where the active parts do not allow a mixed one."""
        segments = route.segments
        if len(segments) == 1 or self.attachments.can_share_pass(
            route.tasks, per_task_gradients=self.gradients is not None
        ):
            return self._pass(images, route, 0)
        parts = [
            self._pass(images[s.start : s.stop], Route.single(s.task, s.stop - s.start), index)
            for index, s in enumerate(segments)
        ]
        return Features.cat(parts)

    def _encode(self, images: Tensor, route: Route) -> Features:
        if self.gradients is not None:
            self.gradients.begin(route)
        for method in self.methods.values():
            if type(method).encode is not Method.encode:
                return method.encode(self, images, route)
        return self.run(images, route)

    def _recomputing(self) -> bool:
        """Whether blocks are recomputed in the backward pass, whoever asked timm for it."""
        recomputing = any(module.grad_checkpointing for module in self._recomputes)
        if recomputing and timm.layers.use_reentrant_ckpt():
            raise NotApplicable(
                "reentrant checkpoints cannot train a frozen backbone's parts", hint="unset TIMM_REENTRANT_CKPT"
            )
        return recomputing

    def _pass(self, images: Tensor, route: Route, first: int) -> Features:
        self.pass_state.tagging = self._recomputing()
        height, width = self.extractor.grid(self.backbone, (images.shape[-2], images.shape[-1]))
        side = self.attachments.side
        taps: list[Tensor] | None = [] if any(side.active(task) for task in route.tasks) else None
        layout = TokenLayout(self.extractor.prefix, height, width, (images.shape[-2], images.shape[-1]))
        one_plan = self.gradients is None and self.attachments.same_plan(route.tasks)
        self.pass_state.enter(Pass(route, layout, first, self.gradients, taps=taps, one_plan=one_plan))
        features = self.extractor(self.backbone, images)
        if taps is None:
            return features
        features = replace(features, taps=tuple(taps))
        pieces = []
        for index, segment, plan in side.spans():
            piece = features[segment.start : segment.stop]
            for placed in plan:
                piece = side.run(placed, index, segment.task, piece)
            pieces.append(piece)
        return replace(Features.cat(pieces), taps=())

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
        backbone: Any = self.backbone
        try:
            backbone.set_grad_checkpointing(enable)
        except (AssertionError, AttributeError):
            if enable:
                family = type(self.backbone).__name__
                raise NotApplicable(f"{family} does not support gradient checkpointing", hint="leave it out") from None
        self._recomputing()  # refuses now what the first pass would refuse

    @contextmanager
    def task_gradients(self) -> Iterator[TaskGradients]:
        """Keep each task's gradient of the shared parts apart, for batches whose samples each belong to one task.

        Example::

            with host.task_gradients() as gradients:
                loss(host(images, tasks)).backward()
            gradients.jacobian()     # (T, P): one row for each task
        """
        self.gradients = TaskGradients(self.shared_parameters())
        try:
            yield self.gradients
        finally:
            self.gradients = None

    # --- heads

    def add_head(self, name: str, head: nn.Module) -> None:
        """A head, moved to the backbone's device and dtype; its parameters that need no gradient never train.

        Raises:
            UsageError: for a name that no file can have.
        """
        check_head_name(name)
        like = next(self.backbone.parameters())
        self.heads[name] = head.to(like.device, like.dtype).train(self.training)
        self.fixed[name] = {n for n, parameter in head.named_parameters() if not parameter.requires_grad}

    def bind_head(self, task: str, name: str) -> None:
        """The head that ``task`` uses; tasks of a group share one.

        Raises:
            UsageError: for an unknown task, or a head that was not added.
        """
        self._known(task)
        if name not in self.heads:
            raise UsageError(f'the host has no head "{name}"', hint=did_you_mean(name, self.heads))
        self.head_names[task] = name
        self._apply_frozen_head(name)

    def head_of(self, task: str) -> Any:
        self._known(task)
        if task not in self.head_names:
            raise UsageError(
                f'task "{task}" has no head',
                hint="add one with host.add_head(name, head) and host.bind_head(task, name)",
            )
        return self.heads[self.head_names[task]]

    # --- what is trained, counted, saved

    def parts_of(self, method: Method, tasks: Sequence[str]) -> list[PartAtSite]:
        """The parts of ``method`` that act for any of ``tasks``, each once, with its site and owner.

        For hooks such as `Method.calibrate`, which look at their own parts or set where they start.
        """
        plans = [self.parts.active_parts(task, self.tasks) for task in tasks]
        return list(dict.fromkeys(p for plan in plans for p in plan if self.methods[p.method] is method))

    def owners(self) -> list[str]:
        """``shared`` and the tasks, whether or not they own anything."""
        return [SHARED, *self.tasks]

    def tensors(self, owner: str) -> dict[str, Tensor]:
        """Everything ``owner`` owns, heads apart: ``METHOD/SITE/TENSOR`` (site ``common``: what parts share)."""
        return self.parts.tensors(owner)

    def shared_parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters of the shared owner, without per-task copies."""
        return {n: t for n, t in self.tensors(SHARED).items() if isinstance(t, nn.Parameter) and t.requires_grad}

    def trainable(self, tasks: Sequence[str]) -> dict[str, nn.Parameter]:
        """What training ``tasks`` changes: ``OWNER/METHOD/SITE/TENSOR`` of parts, ``head:NAME/TENSOR`` of heads."""
        found: dict[str, nn.Parameter] = {}
        for owner in (SHARED, *tasks):
            named = {str(ParameterKey("part", owner, n)): t for n, t in self.tensors(owner).items()}
            found |= {n: t for n, t in named.items() if isinstance(t, nn.Parameter)}
        for head in dict.fromkeys(self.head_names[task] for task in tasks if task in self.head_names):
            found |= {str(ParameterKey("head", head, n)): p for n, p in self.heads[head].named_parameters()}
        return {name: p for name, p in found.items() if p.requires_grad}

    def count(self) -> Counts:
        counts = Counts(heads={name: _numel(head.parameters()) for name, head in self.heads.items()})
        for owner in self.owners():
            tensors = self.tensors(owner).values()
            number = _numel(t for t in tensors if isinstance(t, nn.Parameter))
            counts.buffers += sum(t.numel() * t.element_size() for t in tensors if not isinstance(t, nn.Parameter))
            if owner == SHARED:
                counts.shared = number
            else:
                counts.per_task[owner] = number
        return counts

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
        if self.unmerged_copy is not None:
            raise UsageError("the host is merged already", hint="call unmerge() first")
        self._known(task)
        merged = merging.merged_tensors(self.attachments, self.parts.active_parts(task, self.tasks), task)
        self.unmerged_copy = merging.swap_in(self.attachments.model, merged)
        self.pass_state.merged, self.merged_task = True, task

    def unmerge(self) -> None:
        """Bring the weights back, bit for bit, from a kept copy."""
        if self.unmerged_copy is not None:
            merging.swap_in(self.attachments.model, self.unmerged_copy)
            self.unmerged_copy, self.pass_state.merged = None, False

    def detach(self) -> nn.Module:
        """The backbone as it was before: keys, classes, hooks, flags and values."""
        self.unmerge()
        self.attachments.detach()
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(self._flags[name])
        for path, module in self.backbone.named_modules():
            module.training = self._modes[path]
        for module, recomputes in self._recomputes.items():
            module.grad_checkpointing = recomputes
        return self.backbone

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """``name`` and ``sha256`` of the frozen backbone. Frozen means frozen: it is computed once."""
        kept = self.unmerged_copy or {}
        return {"name": full_name(self.backbone), "sha256": state_sha256(merging.plain_state(self.backbone, kept))}

    def save(self, directory: str | Path, extra: dict[str, Any] | None = None) -> None:
        """Write the adapter folder: one safetensors file for each owner, heads apart, ``adapter.json``."""
        store.save(self, Path(directory), extra or {})

    def fit(self, owner: str, tensors: Mapping[str, Tensor]) -> None:
        """Let the parts of ``owner`` make room for saved ``tensors``, where data decided what they hold."""
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self.parts.fit(owner, shapes, next(self.backbone.parameters()).device)
        self._apply_frozen()

    def load(self, directory: str | Path) -> dict[str, Any]:
        """Read what `save` wrote into this host; returns the ``extra``.

        Raises:
            MtpeftError: for another backbone, another method or task, or a damaged file; the host is then unchanged.
        """
        return store.load(self, Path(directory))

    def _known(self, task: str | None) -> None:
        if task is not None and task not in self.tasks:
            raise UsageError(f'the host has no task "{task}"', hint=did_you_mean(task, self.tasks))
        if self.unmerged_copy is not None and task != self.merged_task:
            raise UsageError(
                f"the host is merged for {self.merged_task!r}, not for {task!r}", hint="call unmerge() first"
            )

    def _apply_frozen(self) -> None:
        for owner in self.owners():
            for tensor in self.tensors(owner).values():
                if isinstance(tensor, nn.Parameter):
                    tensor.requires_grad_(owner not in self.frozen)
        for head in set(self.head_names.values()):
            self._apply_frozen_head(head)

    def _apply_frozen_head(self, head: str) -> None:
        """A head rests where all its tasks do; what never trained in it stays so."""
        rests = all(task in self.frozen for task, name in self.head_names.items() if name == head)
        for name, parameter in self.heads[head].named_parameters():
            parameter.requires_grad_(not rests and name not in self.fixed[head])


def _numel(parameters: Any) -> int:
    return sum(p.numel() for p in parameters)
