"""All parts of a host, by method, owner and site; who owns which tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from mtpeft.errors import MtpeftError, NotApplicable
from mtpeft.names import SHARED
from mtpeft.peft.method import Method
from mtpeft.peft.module_map import ModuleMap
from mtpeft.peft.mounts import PartAtSite
from mtpeft.peft.parts import KINDS, Part, PerTask
from mtpeft.peft.route import PassState
from mtpeft.peft.sites import Site

COMMON = "common"
"""Stands for the site of what parts share."""


class OwnedParts(nn.Module):
    """The parts of some methods at their chosen sites.

    Args:
        methods: name -> configured method, in the order they compose.
        sites: name -> the sites its pattern chose.
        pass_state: what parts share with the host while they run.

    Attributes:
        by_owner: method -> owner -> site -> part.
        shared_modules: method -> owner -> what its parts share across sites.
    """

    def __init__(
        self, methods: Mapping[str, Method], sites: Mapping[str, Sequence[Site]], pass_state: PassState
    ) -> None:
        super().__init__()
        self.methods, self.sites, self.pass_state = methods, sites, pass_state
        self.by_owner, self.shared_modules = ModuleMap(), ModuleMap()
        for name in methods:
            self.by_owner[name], self.shared_modules[name] = ModuleMap(), ModuleMap()

    def build_missing(self, tasks: Sequence[str], like: Tensor) -> None:
        """Build what is missing, with the device and dtype of ``like``: parts for every owner that acts for some task,
        and each task's copies.

        Raises:
            MtpeftError: where a method names an owner that is neither ``shared`` nor a task.
        """
        for name, method in self.methods.items():
            for owner in dict.fromkeys(owner for task in (None, *tasks) for owner in self.owners(name, task, tasks)):
                if owner not in self.by_owner[name]:
                    self._build(name, method, owner, like)
        for owner, copies in self._copies():
            for task in tasks if owner == SHARED else [owner]:
                if task not in copies.copies:
                    copies.add_copy(task, like)

    def owners(self, name: str, task: str | None, tasks: Sequence[str]) -> tuple[str, ...]:
        """Whose parts of a method act for ``task``.

        Raises:
            MtpeftError: for an owner that is neither ``shared`` nor a task: it would not be trained, counted or saved.
        """
        owners = self.methods[name].owners(task, tasks)
        for owner in owners:
            if owner != SHARED and owner not in tasks:
                raise MtpeftError(
                    f'{name} gives parts to "{owner}", which is neither "{SHARED}" nor a task',
                    hint="Method.owners names who trains, counts and saves the parts",
                )
        return owners

    def remove(self, owner: str) -> None:
        """Remove everything ``owner`` owns."""
        for keyed in (self.by_owner, self.shared_modules):
            for _, owners in keyed.items():
                if owner in owners:
                    del owners[owner]
        for _, copies in self._copies():
            if owner in copies.copies:
                copies.remove(owner)

    def fit(self, owner: str, shapes: Mapping[str, tuple[int, ...]], device: torch.device) -> None:
        """Let the parts of ``owner`` make room for saved tensors ``METHOD/SITE/TENSOR``."""
        for name, owners in self.by_owner.items():
            for site, part in owners[owner].items() if owner in owners else ():
                start = f"{name}/{site}/"
                part.fit({key.removeprefix(start): shape for key, shape in shapes.items() if key.startswith(start)})
                part.to(device)

    def active_parts(self, task: str | None, tasks: Sequence[str]) -> tuple[PartAtSite, ...]:
        """The parts that act for ``task``, in the order they apply."""
        found: list[PartAtSite] = []
        for name in self.methods:
            by_name = {site.name: site for site in self.sites[name]}
            for owner in self.owners(name, task, tasks):
                if owner not in self.by_owner[name]:  # a refusal came between
                    continue
                common = self.shared_modules[name].get(owner)
                shared_copies = common is not None and _has_copies(common)
                for site, part in self.by_owner[name][owner].items():
                    found.append(PartAtSite(part, by_name[site], name, owner, shared_copies or _has_copies(part)))
        return tuple(found)

    def tensors(self, owner: str) -> dict[str, Tensor]:
        """Everything ``owner`` owns: ``METHOD/SITE/TENSOR`` (the site is ``common`` for what parts share)."""
        owned: dict[str, Tensor] = {}
        for name in self.methods:
            for holder in dict.fromkeys((SHARED, owner)):  # copies for a task lie in its own parts and in shared ones
                if holder not in self.by_owner[name]:
                    continue
                units = self.by_owner[name][holder].items()
                if holder in self.shared_modules[name]:
                    units.append((COMMON, self.shared_modules[name][holder]))
                for site, module in units:
                    owned |= {f"{name}/{site}/{key}": tensor for key, tensor in _tensors(module, holder, owner)}
        return owned

    def _build(self, name: str, method: Method, owner: str, like: Tensor) -> None:
        sites = [replace(site, owner=owner) for site in self.sites[name]]
        common = method.common(sites)
        if common is not None:
            _refuse_fixed(common, f"{name} shares")
            self.shared_modules[name][owner] = common.to(like.device, like.dtype)
            for module in common.modules():
                if isinstance(module, PerTask):
                    module.bind(self.pass_state)
        parts = ModuleMap()
        for site in sites:
            part = method.part(site)
            if part is not None:
                _refuse_no_part(part, name, site)
                _refuse_fixed(part, f"{name} gives {site.name}")
                part.bind(self.pass_state, common)
                parts[site.name] = part
        if sites and not len(parts):
            family = sites[0].model.family
            raise NotApplicable(f'{name} has nothing to train at "{method.at}" of {family}', hint="choose other sites")
        self.by_owner[name][owner] = parts.to(like.device, like.dtype)

    def _copies(self) -> list[tuple[str, PerTask]]:
        """``(owner, copies)``; a part that a task owns serves that task alone, and needs no copy for another."""
        return [
            (owner, module)
            for keyed in (self.by_owner, self.shared_modules)
            for _, owners in keyed.items()
            for owner, holder in owners.items()
            for module in holder.modules()
            if isinstance(module, PerTask)
        ]


def _refuse_no_part(part: Part, method: str, site: Site) -> None:
    """
    Raises:
        MtpeftError: for what is no part of any kind.
    """
    if not isinstance(part, KINDS):
        kinds = ", ".join(kind.__name__ for kind in KINDS)
        raise MtpeftError(f"{method} gives a {type(part).__name__} for {site.name}", hint=f"a part is one of {kinds}")


def _refuse_fixed(module: nn.Module, who: str) -> None:
    """
    Raises:
        MtpeftError: for a parameter that shall not train, for the host would train it.
    """
    fixed = next((name for name, parameter in module.named_parameters() if not parameter.requires_grad), None)
    if fixed is not None:
        hint = "what is kept and not trained is a buffer: self.register_buffer(name, tensor)"
        raise MtpeftError(f"{who} a parameter {fixed} that needs no gradient", hint=hint)


def _has_copies(module: nn.Module) -> bool:
    return any(isinstance(m, PerTask) for m in module.modules())


def _tensors(module: nn.Module, holder: str, owner: str) -> Iterator[tuple[str, Tensor]]:
    """Tensors of ``module``, held by ``holder``, that belong to ``owner``: `PerTask` copies belong to their task."""
    copies = {f"{path}.copies" if path else "copies": m for path, m in module.named_modules() if isinstance(m, PerTask)}
    if owner == holder:
        for name, tensor in module.state_dict(keep_vars=True).items():
            if not any(name.startswith(f"{path}.") for path in copies):
                yield name, tensor
    for path, per_task in copies.items():
        copy = per_task.copies.get(owner)
        if isinstance(copy, nn.Parameter):
            yield path, copy
        elif copy is not None:
            yield from ((f"{path}.{name}", tensor) for name, tensor in copy.state_dict(keep_vars=True).items())
