"""Weight parts: a parametrization computes the tensor in force from the frozen one, row slices included."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtpeft.errors import MtpeftError
from mtpeft.peft.mounts import Mount, PartAtSite
from mtpeft.peft.parts import Part, WeightPart
from mtpeft.peft.route import PassState
from mtpeft.peft.sites import TensorRef


def replace_rows(tensor: Tensor, start: int, stop: int, rows: Tensor) -> Tensor:
    """``tensor`` with rows ``start:stop`` replaced; the whole of it where they are all."""
    if tensor.ndim == 0 or (start == 0 and stop == tensor.shape[0]):
        return rows
    return torch.cat([tensor[:start], rows, tensor[stop:]])


def changes_bias(part: Part) -> bool:
    return isinstance(part, WeightPart) and type(part).bias is not WeightPart.bias


@dataclass(eq=False)
class WeightMount(Mount):
    """The weight parts of one tensor.

    ``on_activations``: all are low-rank, or all are gains, and the module is called, so a hook runs them there and the
    tensor stays frozen. ``bias_too``: so does the bias, because gains of the output change it as well.
    """

    on_activations: bool = False
    bias_too: bool = False

    def value(self, original: Tensor, task: str | None, until: PartAtSite | None = None) -> Tensor:
        """The tensor under ``task``'s plan, or as the part ``until`` sees it."""
        for placed in self.plans.get(task, ()):
            if placed is until:
                break
            ref = placed.site.rows
            rows = original[ref.start : ref.stop] if original.ndim else original
            original = replace_rows(original, ref.start, ref.stop, self.run(placed, *self.whole(task), rows))
        return original


@dataclass(eq=False, kw_only=True)
class BiasMount(Mount):
    """The weight parts that also change one bias tensor; a BEiT-like attention keeps three.

    ``ref``: the tensor, None where timm has none.
    """

    weights: WeightMount
    ref: TensorRef | None = None

    def value(self, original: Tensor, task: str | None) -> Tensor:
        """The bias under ``task``'s plan."""
        for placed in self.plans.get(task, ()):
            offset = 0
            full = torch.cat([self._now(ref, original, placed) for ref in placed.site.bias])
            changed = changed_bias(self.weights, placed, task, full)
            if changed is None:
                raise MtpeftError(f"{placed.method} gives no bias at {placed.site.name}, which has one")
            for ref in placed.site.bias:
                size = ref.stop - ref.start
                if self._holds(ref):
                    original = replace_rows(original, ref.start, ref.stop, changed[offset : offset + size])
                offset += size
        return original

    def _now(self, ref: TensorRef, current: Tensor, placed: PartAtSite) -> Tensor:
        tensor = current if self._holds(ref) else placed.site.model.original(ref.path, ref.name)
        return tensor[ref.start : ref.stop]

    def _holds(self, ref: TensorRef) -> bool:
        return self.ref is not None and (ref.path, ref.name) == (self.ref.path, self.ref.name)


def changed_bias(weights: WeightMount, placed: PartAtSite, task: str | None, bias: Tensor | None) -> Tensor | None:
    """The part's bias, given the weight as the part sees it."""
    ref = placed.site.rows
    original = placed.site.model.original(ref.path, ref.name)
    weight = weights.value(original, task, until=placed)[ref.start : ref.stop]
    with weights.using(placed, *weights.whole(task)) as part:
        return part.bias(weight, bias)


class Parametrization(nn.Module):
    """What `torch.nn.utils.parametrize` calls whenever the tensor is read."""

    def __init__(self, mount: WeightMount | BiasMount) -> None:
        super().__init__()
        self.mount = mount

    def forward(self, original: Tensor) -> Tensor:
        pass_state: PassState = self.mount.pass_state
        return original if pass_state.merged else self.mount.value(original, pass_state.task)
