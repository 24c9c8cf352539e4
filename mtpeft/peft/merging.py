"""Merging: the parts of one task folded into plain timm weights, and taken out again bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtpeft.errors import NotApplicable, UsageError
from mtpeft.peft.attach import Attachments
from mtpeft.peft.mounts import PartAtSite
from mtpeft.peft.parts import InputPart, LowRankPart, OutputPart, WeightPart, is_gain
from mtpeft.peft.route import Pass, Route
from mtpeft.peft.sites import Model, is_standardised

Tensors = dict[tuple[str, str], Tensor]


class MergedWeights:
    """The backbone's weights, with a task's parts folded in or not.

    Attributes:
        task: whose parts are in; None also stands for parts that need no task.
        unmerged: copies of the frozen tensors that were replaced; None while nothing is merged.
    """

    def __init__(self, attachments: Attachments) -> None:
        self.attachments = attachments
        self.task: str | None = None
        self.unmerged: Tensors | None = None

    @property
    def active(self) -> bool:
        return self.unmerged is not None

    def merge(self, parts: Sequence[PartAtSite], task: str | None) -> None:
        """Fold ``parts`` into the backbone's weights.

        Raises:
            UsageError: where something is merged already.
            NotApplicable: for a part that no weight can stand for; nothing is changed then.
        """
        if self.active:
            raise UsageError("the host is merged already", hint="call unmerge() first")
        self.unmerged = swap_in(self.attachments.model, merged_tensors(self.attachments, parts, task))
        self.attachments.pass_state.merged, self.task = True, task

    def unmerge(self) -> None:
        """Bring the weights back, bit for bit, from the copies."""
        if self.unmerged is not None:
            swap_in(self.attachments.model, self.unmerged)
            self.unmerged, self.attachments.pass_state.merged = None, False

    def frozen_state(self) -> dict[str, Tensor]:
        """The backbone's own state dict, whether or not parts are merged."""
        return plain_state(self.attachments.backbone, self.unmerged or {})


@torch.no_grad()
def merged_tensors(attachments: Attachments, plan: Sequence[PartAtSite], task: str | None) -> Tensors:
    """``(path, tensor name)`` -> the tensor with all parts of ``plan`` folded in.

    Raises:
        NotApplicable: for a part that no weight can stand for, or a weight that is no plain tensor.
    """
    for placed in plan:
        _check(placed)
    pass_state, model = attachments.pass_state, attachments.model
    pass_state.enter(Pass(Route.single(task, 1)))
    found: Tensors = {}
    for key, chain in attachments.chains.items():
        value = model.original(*key)
        _check_plain(key, value)
        for mount in chain:
            value = mount.value(value, task)
        _check_bias(model, key, value)
        if model.saves(*key):
            found[key] = value.clone()
    inputs = [placed for placed in plan if isinstance(placed.part, InputPart)]
    # of several parts at one input, the last is next to the weight
    for placed in (*reversed(inputs), *(placed for placed in plan if placed not in inputs)):
        affine = placed.part.affine() if isinstance(placed.part, (InputPart, OutputPart)) else None
        if affine is not None:
            _fold_affine(model, found, placed, *affine)
    return found


def plain_state(backbone: nn.Module, merged: Tensors) -> dict[str, Tensor]:
    """The backbone's state dict under timm's own keys, with ``merged`` in place."""
    state = {}
    for key, tensor in backbone.state_dict().items():
        path, _, rest = key.rpartition(".parametrizations.")
        name = rest.removesuffix(".original") if rest and path else ""
        state[f"{path}.{name}" if name else key.removeprefix("parametrizations.").removesuffix(".original")] = tensor
    for (path, name), tensor in merged.items():
        state[f"{path}.{name}" if path else name] = tensor
    return {key: tensor.detach().clone() for key, tensor in state.items()}


@torch.no_grad()
def swap_in(model: Model, tensors: Tensors) -> Tensors:
    """Write ``tensors`` over the frozen ones in place; returns copies of what was there."""
    kept = {key: model.original(*key).clone() for key in tensors}
    for key, tensor in tensors.items():
        model.original(*key).copy_(tensor)
    return kept


def _check(placed: PartAtSite) -> None:
    part, site = placed.part, placed.site
    reason = ""
    if isinstance(part, LowRankPart) and part.input_dependent:
        reason = "its update depends on the input"
    elif is_gain(part) and is_standardised(site.module):
        reason = f"{site.name} standardises its weight before use, so a gain would be lost in it"
    elif isinstance(part, WeightPart) and not site.bias:
        if part.bias(site.weight, None) is not None:
            reason = f"it needs a bias at {site.name}, and timm has none there"
    elif isinstance(part, (InputPart, OutputPart)):
        linear = isinstance(site.module, nn.Linear) or (
            isinstance(site.module, nn.Conv2d) and site.module.kernel_size == (1, 1) and site.module.groups == 1
        )
        linear = linear and not is_standardised(site.module)
        if part.affine() is None or not linear or site.bypassed or "slice" in site.tags:
            reason = f"its part at {site.name} is no affine map beside a linear layer"
    elif not isinstance(part, WeightPart):
        reason = f"its part at {site.name} is no function of a weight"
    if reason:
        raise NotApplicable(f"{placed.method} does not merge: {reason}", hint="keep the adapter beside the backbone")


def _check_plain(key: tuple[str, str], value: Tensor) -> None:
    """A tensor subclass, as quantisation makes them, gives values when read, and takes none back exactly."""
    if type(value.detach()) is not Tensor:
        kind = type(value.detach()).__name__
        raise NotApplicable(
            f"the weight {'.'.join(key)} is a {kind}, so nothing merges into it",
            hint="keep the adapter beside the backbone",
        )


def _check_bias(model: Model, key: tuple[str, str], value: Tensor) -> None:
    """A buffer that timm does not save cannot hold a merged bias."""
    if not model.saves(*key) and not torch.equal(value, model.original(*key)):
        raise NotApplicable(
            f"the bias {key[0]}.{key[1]} is no weight that timm saves, so a change of it does not merge",
            hint="keep the adapter beside the backbone",
        )


def _fold_affine(model: Model, found: Tensors, placed: PartAtSite, matrix: Tensor, shift: Tensor) -> None:
    """Input ``M x + c``: ``W M``, ``b + W c``. Output ``M y + c``: ``M W``, ``M b + c``."""
    site = placed.site
    key = (site.path, "weight")
    weight = found.get(key, model.original(*key)).clone()
    flat = weight.flatten(1)
    bias = model.modules[site.path].bias
    old = found.get(
        (site.path, "bias"), model.original(site.path, "bias") if bias is not None else flat.new_zeros(len(flat))
    )
    if isinstance(placed.part, InputPart):
        new_bias, flat = old + flat @ shift, flat @ matrix
    else:
        new_bias, flat = matrix @ old + shift, matrix @ flat
    if bias is None and bool(new_bias.any()):
        raise NotApplicable(f"{placed.method} does not merge: it needs a bias at {site.name}, and timm has none there")
    found[key] = flat.view_as(weight)
    if bias is not None:
        found[site.path, "bias"] = new_bias
