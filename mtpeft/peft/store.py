"""The adapter folder: one safetensors file for each owner, heads apart, and ``adapter.json``. No pickles."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mtpeft.errors import MtpeftError
from mtpeft.names import SHARED
from mtpeft.peft.method import Method

if TYPE_CHECKING:
    from mtpeft.peft.host import Host

FORMAT = 1


def file_name(owner: str) -> str:
    return f"{SHARED}.safetensors" if owner == SHARED else f"task.{owner}.safetensors"


def save(host: Host, directory: Path, extra: dict[str, Any]) -> None:
    """Write every owner's tensors, every head, and what is needed to build the host again."""
    directory.mkdir(parents=True, exist_ok=True)
    for owner in host.owners():
        _write(host.tensors(owner), directory / file_name(owner))
    for name, head in host.heads.items():
        _write(head.state_dict(), directory / f"head.{name}.safetensors")
    methods = [{"name": n, "class": f"{type(m).__module__}:{type(m).__qualname__}", "settings": asdict(m)} for n, m in
               host.methods.items()]  # fmt: skip
    description = {
        "format": FORMAT,
        "backbone": host.fingerprint,
        "image_size": list(host.image_size),
        "methods": methods,
        "tasks": host.tasks,
        "heads": {name: describe_head(head) for name, head in host.heads.items()},
        "head_of": host.head_names,
        "extra": extra,
    }
    (directory / "adapter.json").write_text(json.dumps(description, indent=2) + "\n")


def load(host: Host, directory: Path) -> dict[str, Any]:
    """Read an adapter folder into ``host``; every file is read and checked before any value is changed, and tasks that
    were added for it are removed where it does not fit.
    """
    description = read_description(directory)
    _check_backbone(host, description, directory)
    owners = {owner: directory / file_name(owner) for owner in (SHARED, *description["tasks"])}
    heads = {name: directory / f"head.{name}.safetensors" for name in description["heads"] if name in host.heads}
    read = {path: read_tensors(path) for path in (*owners.values(), *heads.values())}
    added = [task for task in description["tasks"] if task not in host.tasks]
    try:
        for task in added:
            host.add_task(task)
        pairs: list[tuple[Tensor, Tensor]] = []
        for owner, path in owners.items():
            host.fit(owner, read[path])
            pairs += _matched(host.tensors(owner), read[path], path)
        for name, path in heads.items():
            head = host.heads[name]
            new = [c for c in description["heads"][name]["classes"] if c not in head.classes]
            if new:
                head.extend(new)
            pairs += _matched(head.state_dict(keep_vars=True), read[path], path)
    except MtpeftError:
        for task in added:
            if task in host.tasks:
                host.remove_task(task)
        raise
    with torch.no_grad():
        for tensor, value in pairs:
            tensor.copy_(value)
    for task, name in description["head_of"].items():
        if name in host.heads:
            host.bind_head(task, name)
    return description["extra"]


def read_description(directory: Path) -> dict[str, Any]:
    """``adapter.json`` of an adapter folder.

    Raises:
        MtpeftError: if it is missing, damaged or of another format.
    """
    path = directory / "adapter.json"
    try:
        description = json.loads(path.read_text())
    except FileNotFoundError:
        raise MtpeftError(
            f'"{directory}" is no adapter folder: it has no adapter.json', hint="give RUN/adapter"
        ) from None
    except (ValueError, UnicodeDecodeError) as error:
        raise MtpeftError(f'"{path}" is damaged: {error}', hint="take another copy of the run") from None
    if description.get("format") != FORMAT:
        raise MtpeftError(
            f'"{path}" has format {description.get("format")!r}, and this mtpeft reads {FORMAT}', hint="upgrade mtpeft"
        )
    return description


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file, or a sentence about what is wrong with it."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise MtpeftError(f'"{path}" is missing', hint="the adapter folder is incomplete; take another copy") from None
    except (SafetensorError, OSError) as error:
        raise MtpeftError(
            f'"{path}" is truncated or damaged: {error}', hint="take another copy, or train again"
        ) from None


def build_method(saved: dict[str, Any]) -> Method:
    """The configured method that `save` described.

    Raises:
        MtpeftError: if its class is not installed or no longer takes these settings.
    """
    module, _, name = saved["class"].partition(":")
    try:
        return getattr(import_module(module), name)(**saved["settings"])
    except (ImportError, AttributeError, TypeError) as error:
        raise MtpeftError(
            f'the method "{saved["name"]}" ({saved["class"]}) cannot be built: {error}',
            hint="install the plugin that brings it",
        ) from None


def describe_head(head: Any) -> dict[str, Any]:
    spec = getattr(head, "spec", None)
    classes = list(getattr(head, "classes", ()))
    return spec.to_json(classes) if spec is not None else {"type": "", "classes": classes, "settings": {}}


def _check_backbone(host: Host, description: dict[str, Any], directory: Path) -> None:
    mine, saved = host.fingerprint, description["backbone"]
    if mine["sha256"] != saved["sha256"]:
        raise MtpeftError(
            f'"{directory}" was trained on {saved["name"]} with other weights '
            f"(sha256 {saved['sha256'][:12]}, here {mine['name']} {mine['sha256'][:12]})",
            hint="load the same backbone, weights and image size",
        )
    names = [m["name"] for m in description["methods"]]
    if names != list(host.methods):
        raise MtpeftError(
            f'"{directory}" holds the methods {_listed(names)}, and this host {_listed(host.methods)}',
            hint="build the host with the same methods, or use mtpeft.load(directory, backbone)",
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _matched(mine: dict[str, Tensor], saved: dict[str, Tensor], path: Path) -> list[tuple[Tensor, Tensor]]:
    for key in sorted(mine.keys() | saved.keys()):
        if key not in saved or key not in mine:
            where = "lacks" if key not in saved else "has the unknown"
            raise MtpeftError(
                f'"{path}" {where} tensor {key}', hint="the method's settings differ from those it was trained with"
            )
        if mine[key].shape != saved[key].shape:
            raise MtpeftError(
                f'"{path}": {key} has shape {tuple(saved[key].shape)}, and here {tuple(mine[key].shape)}',
                hint="the method's settings differ from those it was trained with",
            )
    return [(mine[key], saved[key]) for key in mine]


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({key: t.detach().cpu().contiguous() for key, t in tensors.items()}, path)
