"""A host to the value that is saved, and back: everything is checked before anything of the host changes."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mtpeft.errors import DataError, MtpeftError
from mtpeft.names import SHARED, brief
from mtpeft.peft.method import Method, Stateful
from mtpeft.peft.ownership import Ownership
from mtpeft.peft.store import AdapterContents, Fingerprint, HeadSpec, SavedMethod, owner_file
from mtpeft.plugins import registry, resolve


class Holder(Protocol):
    """The host, as far as it is saved and loaded."""

    methods: dict[str, Method]
    routines: dict[str, Stateful]
    ownership: Ownership
    image_size: tuple[int, int]
    backbone: nn.Module

    @property
    def fingerprint(self) -> dict[str, str]: ...

    def add_task(self, name: str) -> None: ...

    def remove_task(self, name: str) -> None: ...

    @property
    def info(self) -> Any: ...


def describe(host: Holder, extra: dict[str, Any]) -> AdapterContents:
    """What is to be saved of a host."""
    own, heads = host.ownership, host.ownership.heads
    return AdapterContents(
        backbone=Fingerprint(**host.fingerprint),
        image_size=host.image_size,
        methods=[saved_method(name, method) for name, method in host.methods.items()],
        tasks=list(own.tasks),
        frozen=sorted(own.frozen),
        heads={name: head_spec(head) for name, head in heads.items()},
        head_of=dict(heads.of_task),
        groups=sorted(heads.groups),
        owners={owner: own.parts.tensors(owner) for owner in own.owners},
        head_tensors={name: head.state_dict() for name, head in heads.items()},
        kept={name: routine.kept() for name, routine in host.routines.items()},
        extra=extra,
    )


def saved_method(name: str, method: Method) -> SavedMethod:
    """A method by the id that its class is registered under, if it is."""
    settings = json.loads(json.dumps(asdict(method)))
    cls = type(method)
    for entry in registry("methods").values():
        if entry.reference.rpartition(":")[2] == cls.__qualname__ and resolve("methods", entry.id) is cls:
            return SavedMethod(name, entry.id, entry.distribution, entry.version, settings)
    return SavedMethod(name, None, cls.__module__.partition(".")[0], "", settings)


def head_spec(head: Any) -> HeadSpec:
    """What a head can be built from again; its classes may have grown since."""
    spec, classes = getattr(head, "spec", None), tuple(getattr(head, "classes", ()))
    return HeadSpec(classes=classes) if spec is None else HeadSpec(spec.type, classes, dict(spec.settings))


@contextmanager
def as_data(where: str) -> Iterator[None]:
    """Whatever settings or tensors out of files make plugin code raise is a fault of the files.

    Raises:
        DataError: naming ``where`` they come from.
    """
    try:
        yield
    except MtpeftError:
        raise
    except Exception as error:
        reason = brief(str(error).strip().split("\n")[0])
        raise DataError(
            f"{where} does not fit: {type(error).__name__}: {reason}", hint="it is damaged; take it from a copy"
        ) from error


def take(host: Holder, contents: AdapterContents) -> None:
    """Bring what was saved into a host.

    Tasks it lacks are added; its heads that the contents know take over the saved classes in their order.

    Raises:
        MtpeftError: for another backbone, other methods or settings, or tensors that do not fit; nothing is changed.
    """
    own = host.ownership
    _check_backbone(host, contents)
    _check_methods(host, contents)
    added = [task for task in contents.tasks if task not in own.tasks]
    with _removed_on_error(host, added), _unfitted_on_error(own, contents), as_data("the adapter"):
        for task in added:
            host.add_task(task)
        device = next(host.backbone.parameters()).device
        pairs: list[tuple[Tensor, Tensor]] = []
        for owner, tensors in contents.owners.items():
            own.parts.fit(owner, _shapes(tensors), device)
            pairs += matched(own.parts.tensors(owner), tensors, owner_file(owner))
        heads = {}
        for name, tensors in contents.head_tensors.items():
            if name in own.heads:
                heads[name] = _fitted(own.heads[name], contents.heads[name], host.info, tensors, name)
                pairs += matched(heads[name].state_dict(keep_vars=True), tensors, f"head {name}")
        with _given_back_on_error(host):
            for name, routine in host.routines.items():
                routine.give_back(contents.kept.get(name, {}))
    _commit(own, contents, pairs, heads)


@torch.no_grad()
def _commit(
    own: Ownership, contents: AdapterContents, pairs: list[tuple[Tensor, Tensor]], heads: Mapping[str, nn.Module]
) -> None:
    for tensor, value in pairs:
        tensor.copy_(value)
    for name, head in heads.items():
        own.heads[name] = head
    own.heads.groups = {*own.heads.groups - contents.heads.keys(), *contents.groups} & set(own.heads)
    for task, name in contents.head_of.items():
        if name in own.heads:
            own.heads.bind(task, name)
    own.frozen -= {SHARED, *contents.tasks}
    own.frozen |= set(contents.frozen)
    own.apply()


def _fitted(head: Any, saved: HeadSpec, info: Any, tensors: Mapping[str, Tensor], name: str) -> Any:
    """The head itself where it has the saved classes in their order and the saved shapes; else a copy that has."""
    shapes, known = _shapes(tensors), tuple(getattr(head, "classes", ()))
    same = known == tuple(saved.classes)
    if same and (_shapes(head.state_dict()) == shapes or not hasattr(head, "fit")):
        return head
    foreign = [label for label in known if label not in saved.classes]
    if foreign:
        raise MtpeftError(
            f'the host\'s head "{name}" knows the class "{foreign[0]}", and the saved one does not',
            hint="load into a host whose head has the saved classes, or fewer",
        )
    twin = copy.deepcopy(head)
    twin.extend([label for label in saved.classes if label not in twin.classes], info)
    twin.classes = tuple(saved.classes)
    twin.fit(shapes)
    like = next(iter(head.parameters()), next(iter(head.buffers()), torch.zeros(())))
    return twin.to(like.device)


def matched(mine: Mapping[str, Tensor], saved: Mapping[str, Tensor], where: str) -> list[tuple[Tensor, Tensor]]:
    """Each tensor with its saved value.

    Raises:
        MtpeftError: for names, shapes or kinds of numbers that differ, and for trained numbers that are not finite.
    """
    hint = "the method's settings differ from those it was trained with"
    for key in sorted(mine.keys() | saved.keys()):
        if key not in saved or key not in mine:
            raise MtpeftError(f"{where} {'lacks' if key not in saved else 'has the unknown'} tensor {key}", hint=hint)
        tensor, value = mine[key], saved[key]
        if tensor.shape != value.shape:
            raise MtpeftError(
                f"{where}: {key} has shape {tuple(value.shape)}, and here {tuple(tensor.shape)}", hint=hint
            )
        if tensor.dtype.is_floating_point != value.dtype.is_floating_point:
            raise MtpeftError(f"{where}: {key} holds {value.dtype}, and here {tensor.dtype}", hint=hint)
        if isinstance(tensor, nn.Parameter) and not bool(value.isfinite().all()):
            raise MtpeftError(f"{where}: {key} holds numbers that are not finite", hint="train again, or take a copy")
    return [(mine[key], saved[key]) for key in mine]


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _check_backbone(host: Holder, contents: AdapterContents) -> None:
    mine, saved = host.fingerprint, contents.backbone
    if mine["sha256"] == saved.sha256:
        return
    dtype = next(host.backbone.parameters()).dtype
    if mine["name"] == saved.name and dtype != torch.float32:
        name = str(dtype).removeprefix("torch.")
        raise MtpeftError(
            f"the adapter was trained on {saved.name} in another precision, and here its weights are {name}",
            hint="load it on the backbone in float32, then convert the host: host.to(dtype)",
        )
    raise MtpeftError(
        f"the adapter was trained on {saved.name} with other weights "
        f"(sha256 {saved.sha256[:12]}, here {mine['name']} {mine['sha256'][:12]})",
        hint="load the same backbone, weights and image size",
    )


def _check_methods(host: Holder, contents: AdapterContents) -> None:
    names = [method.name for method in contents.methods]
    if names != list(host.methods):
        raise MtpeftError(
            f"the adapter holds the methods {_listed(names)}, and this host {_listed(host.methods)}",
            hint="build the host with the same methods, or use mtpeft.load(directory, backbone)",
        )
    for saved in contents.methods:
        mine = saved_method(saved.name, host.methods[saved.name]).settings
        differing = next((k for k in {**mine, **saved.settings} if mine.get(k) != saved.settings.get(k)), None)
        if differing is not None:
            raise MtpeftError(
                f"the adapter was trained with {saved.name}.{differing} = {saved.settings.get(differing)!r}, and this "
                f"host has {mine.get(differing)!r}",
                hint="build the host with the same settings, or use mtpeft.load(directory, backbone)",
            )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


@contextmanager
def _removed_on_error(host: Holder, tasks: list[str]) -> Iterator[None]:
    """Tasks that were added for a load go again where it is refused."""
    try:
        yield
    except Exception:
        for task in tasks:
            if task in host.ownership.tasks:
                host.remove_task(task)
        raise


@contextmanager
def _unfitted_on_error(own: Ownership, contents: AdapterContents) -> Iterator[None]:
    """Parts that made room for saved tensors take back their own shapes and values where the load is refused."""
    before: dict[str, dict[str, Tensor]] = {}
    for owner in (owner for owner in own.owners if owner in contents.owners):
        tensors = own.parts.tensors(owner)
        if _shapes(tensors) != _shapes(contents.owners[owner]):
            before[owner] = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    try:
        yield
    except Exception:
        for owner, tensors in before.items():
            own.parts.fit(owner, _shapes(tensors), next(iter(tensors.values()), torch.zeros(())).device)
            for name, tensor in own.parts.tensors(owner).items():
                if name in tensors and tensor.shape == tensors[name].shape:
                    tensor.data.copy_(tensors[name])
        raise


@contextmanager
def _given_back_on_error(host: Holder) -> Iterator[None]:
    """Routines get what they kept before where one of them refuses what was saved."""
    before = {name: routine.kept() for name, routine in host.routines.items()}
    try:
        yield
    except Exception:
        for name, routine in host.routines.items():
            routine.give_back(before[name])
        raise
