"""Attaching: parts to mounts, mounts to parametrizations and hooks; and all of it away again without trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from timm.layers import LayerNormAct, LayerNormAct2d
from torch import nn
from torch.nn.utils import parametrize

from mtpeft.errors import NotApplicable
from mtpeft.peft.hooks import After, Before, KeyValueTarget, MiddleMount, ModuleHook, adds_missing_bias
from mtpeft.peft.mounts import Mount, PartAtSite
from mtpeft.peft.parts import (
    InputPart,
    KeyValuePart,
    LowRankPart,
    OutputPart,
    Part,
    SidePart,
    TokenPart,
    WeightPart,
    gains_columns,
    is_gain,
)  # fmt: skip
from mtpeft.peft.refusals import refuse, refuse_beside_others, refuse_replaced
from mtpeft.peft.route import PassState
from mtpeft.peft.sites import Model, TensorRef, is_plain_conv, parametrizations
from mtpeft.peft.weights import BiasMount, Parametrization, WeightMount, changes_bias

_KINDS: dict[type[Part], Literal["input", "output", "token", "keyvalue"]] = {
    InputPart: "input", OutputPart: "output", TokenPart: "token", KeyValuePart: "keyvalue"
}  # fmt: skip

_SCALED = (nn.Linear, nn.Conv2d, nn.LayerNorm)
"""Modules whose output's channels are the rows of their weight, and nothing follows, but in `_ACTIVATED`."""

_ACTIVATED = (LayerNormAct, LayerNormAct2d)
"""Norms with an activation behind them."""

Plans = dict[str | None, tuple[PartAtSite, ...]]


@dataclass(eq=False)
class Attachments:
    """Everything attached to one backbone.

    Attributes:
        weights: ``(path, tensor name)`` -> the weight parts of that tensor.
        biases: the same for biases that weight parts change.
        chains: the same for both, in the order of composition; a bias may be trained itself and changed with a weight.
        hooks: path -> the module's hook.
        side: the side parts.
    """

    backbone: nn.Module
    model: Model
    pass_state: PassState
    weights: dict[tuple[str, str], WeightMount] = field(default_factory=dict)
    biases: dict[tuple[str, str], BiasMount] = field(default_factory=dict)
    chains: dict[tuple[str, str], list[WeightMount | BiasMount]] = field(default_factory=dict)
    hooks: dict[str, ModuleHook] = field(default_factory=dict)
    side: Mount = field(init=False)
    plans: Plans = field(default_factory=dict)
    orders: dict[nn.Module, tuple[list[str], list[str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.side = Mount(self.pass_state)

    def attach(self, plans: Plans) -> None:
        """Attach the parts of ``plans``: task -> parts in the order they apply."""
        self.plans = plans
        for task, plan in plans.items():
            for placed in plan:
                for place in self._mounts(placed):
                    place.plans[task] = (*place.plans.get(task, ()), placed)
        for (path, name), chain in self.chains.items():
            for task in plans:
                refuse_replaced([placed for mount in chain for placed in mount.plans.get(task, ())], path, name)
        self._choose_activation_path()
        self._hook_blocks(plans)
        for (path, name), chain in self.chains.items():
            for mount in chain:
                if not (mount.weights.bias_too if isinstance(mount, BiasMount) else mount.on_activations):
                    self._parametrize(path, name, mount)
        for path, hook in self.hooks.items():
            hook.register(self.model.modules[path])

    def detach(self) -> None:
        """Take everything away; modules, classes, keys and their order are as before."""
        for path, hook in self.hooks.items():
            module = self.model.modules[path]
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                for key in [k for k, h in hooks.items() if isinstance(h, (Before, After))]:
                    del hooks[key]
            for attention, first in hook.rotary.items():
                attention.num_prefix_tokens = first
        for module, (parameters, buffers) in self.orders.items():
            if parametrize.is_parametrized(module):
                _own_class(module)
            for name in [n for n in (*parameters, *buffers) if parametrize.is_parametrized(module, n)]:
                fleeting = parametrizations(module, name)._non_persistent_buffers_set
                parametrize.remove_parametrizations(module, name, leave_parametrized=False)
                if fleeting:
                    module._non_persistent_buffers_set.add(name)
            _reorder(module._parameters, parameters)
            _reorder(module._buffers, buffers)
        self.weights, self.biases, self.chains, self.hooks, self.orders = {}, {}, {}, {}, {}
        self.side = Mount(self.pass_state)

    def same_plan(self, tasks: Sequence[str | None]) -> bool:
        """Whether ``tasks`` have one and the same plan, and nothing in it differs between them."""
        first = self.plans.get(tasks[0], ())
        return all(self.plans.get(task, ()) == first for task in tasks[1:]) and not (
            len(tasks) > 1 and any(placed.per_task for placed in first)
        )

    def can_share_pass(self, tasks: Iterable[str | None], per_task_gradients: bool) -> bool:
        """Whether one pass can serve all ``tasks``: mounts that cannot be split by samples have one plan for all.

        Args:
            per_task_gradients: keep each task's gradients apart, so even one shared weight part needs its own pass.
        """
        tasks = list(tasks)

        def same(mount: Mount, key: Callable[[PartAtSite], object] = lambda placed: placed) -> bool:
            plans = [tuple(key(p) for p in mount.plans.get(task, ())) for task in tasks]
            return all(plan == plans[0] for plan in plans)

        def whole(mount: Mount) -> bool:
            parts = [p for task in tasks for p in mount.plans.get(task, ())]
            return same(mount) and not any(p.per_task for p in parts) and not (per_task_gradients and parts)

        fixed: list[Mount] = [s for s in self.weights.values() if not s.on_activations]
        fixed += [mount for mount in self.biases.values() if not mount.weights.bias_too]
        fixed += [h.mounts["bias"] for h in self.hooks.values() if "bias" in h.mounts]
        counted = [h.mounts["token"] for h in self.hooks.values() if "token" in h.mounts]
        counted += [h.mounts["keyvalue"] for h in self.hooks.values() if "keyvalue" in h.mounts]
        return all(whole(s) for s in fixed) and all(same(s, lambda p: (p.method, p.part.added)) for s in counted)

    def _mounts(self, placed: PartAtSite) -> list[Mount]:
        part, site = placed.part, placed.site
        refuse(placed)
        if isinstance(part, SidePart):
            return [self.side]
        if isinstance(part, WeightPart):
            return self._weight_mounts(placed)
        mounts = self._hook(site.path).mounts
        if "middle" in site.tags:
            return [mounts.setdefault("middle", MiddleMount(self.pass_state, outer=self._hook(site.block_path)))]
        kind = next(kind for base, kind in _KINDS.items() if isinstance(part, base))
        if kind == "keyvalue":
            self._target_keys_values(site.path)
        return [mounts.setdefault(kind, Mount(self.pass_state))]

    def _weight_mounts(self, placed: PartAtSite) -> list[Mount]:
        site = placed.site
        key = (site.rows.path, site.rows.name)
        if key not in self.weights:
            self.weights[key] = WeightMount(self.pass_state)
            self.chains.setdefault(key, []).append(self.weights[key])
        weights = self.weights[key]
        found: list[Mount] = [weights]
        if not changes_bias(placed.part):
            return found
        if adds_missing_bias(placed):
            if site.bypassed:
                raise NotApplicable(
                    f"{placed.method} needs a bias at {site.name}, which this backbone lacks and bypasses"
                )
            found.append(self._hook(site.path).mounts.setdefault("bias", BiasMount(self.pass_state, weights=weights)))
        for path, name in dict.fromkeys((ref.path, ref.name) for ref in site.bias):
            if (path, name) not in self.biases:
                ref = TensorRef(path, name, 0, len(self.model.original(path, name)))
                self.biases[path, name] = BiasMount(self.pass_state, ref=ref, weights=weights)
                self.chains.setdefault((path, name), []).append(self.biases[path, name])
            found.append(self.biases[path, name])
        return found

    def _choose_activation_path(self) -> None:
        """Low-rank parts, or gains, run on activations where the module is called and nothing else changes a weight."""
        for (path, name), mount in self.weights.items():
            placed = [p for plan in mount.plans.values() for p in plan]
            module = self.model.modules[path]
            if any(p.site.bypassed for p in placed):
                continue
            linear = isinstance(module, nn.Linear) or is_plain_conv(module)
            scaled = name == "weight" and isinstance(module, _SCALED) and not isinstance(module, _ACTIVATED)
            if linear and all(isinstance(p.part, LowRankPart) for p in placed):
                mount.on_activations = True
                self._hook(path).mounts["lowrank"] = mount
            elif scaled and self._all_gains(path, mount, placed):
                mount.on_activations = mount.bias_too = True
                hook = self._hook(path).mounts
                hook["gain"] = mount
                hook.pop("bias", None)
            else:
                refuse_beside_others(placed)

    def _all_gains(self, path: str, mount: WeightMount, placed: list[PartAtSite]) -> bool:
        """Whether input and output may be changed instead of the weight, with the same result."""
        columns = [p for p in placed if gains_columns(p.part)]
        if not all(is_gain(p.part) for p in placed) or any("slice" in p.site.tags for p in columns):
            return False
        if columns and "output" in self._hook(path).mounts:  # an output part sees the input as it is
            return False
        biases = [c for c in self.chains.values() if any(isinstance(s, BiasMount) and s.weights is mount for s in c)]
        return all(len(chain) == 1 for chain in biases)

    def _hook_blocks(self, plans: Plans) -> None:
        """Blocks need a hook for tags (checkpoints), taps (side parts) and tokens that pass through."""
        parts = [p.part for plan in plans.values() for p in plan]
        if not parts:
            return
        carried = any(isinstance(part, TokenPart) and part.carry for part in parts)
        for path in self.model.blocks:
            hook = self._hook(path)
            hook.block = True
            if carried:
                hook.mounts.setdefault("token", Mount(self.pass_state))
            if "token" in hook.mounts and self.model.positions == "rotary":
                inner: Iterable[Any] = self.model.modules[path].modules()
                hook.rotary = {
                    m: m.num_prefix_tokens for m in inner if isinstance(getattr(m, "num_prefix_tokens", None), int)
                }

    def _target_keys_values(self, path: str) -> None:
        attention = self._hook(path)
        names = {"qkv": "qkv", "kv": "kv", "q_proj": "q", "k_proj": "k", "v_proj": "v"}
        for name, letters in names.items():
            if f"{path}.{name}" in self.model.called:
                hook = self._hook(f"{path}.{name}")
                hook.mounts["overwrite"] = KeyValueTarget(self.pass_state, attention=attention, letters=letters)

    def _hook(self, path: str) -> ModuleHook:
        return self.hooks.setdefault(path, ModuleHook(self.pass_state, path not in self.model.channels_first, path))

    def _parametrize(self, path: str, name: str, mount: WeightMount | BiasMount) -> None:
        module = self.model.modules[path]
        self.orders.setdefault(module, (list(module._parameters), list(module._buffers)))
        fleeting = name in module._non_persistent_buffers_set
        parametrize.register_parametrization(module, name, Parametrization(mount), unsafe=True)
        if fleeting:  # torch would save it from now on
            parametrizations(module, name)._non_persistent_buffers_set.add("original")


def is_attached(backbone: nn.Module) -> bool:
    """Whether parts of a host are on the backbone."""
    return any(
        isinstance(module, Parametrization)
        or any(
            isinstance(h, (Before, After))
            for h in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
        )
        for module in backbone.modules()
    )


def _own_class(module: nn.Module) -> None:
    """The class that torch gave a parametrized module, for it alone: copies share it, and would lose the tensor too."""
    shared = type(module)
    module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))


def _reorder(store: dict[str, Any], order: Iterable[str]) -> None:
    for name in order:
        store[name] = store.pop(name)
