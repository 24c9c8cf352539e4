"""The adapter as a value, and the folder it is kept in: safetensors files and ``adapter.json``, hashed, no pickles.

``shared.safetensors`` and ``task.NAME.safetensors`` hold what each owner owns, ``head.NAME.safetensors`` the heads,
``method.NAME.safetensors`` what a method keeps beside its parts. Nothing in a folder is imported or called: it names
methods and task types by their registered ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from mtpeft.errors import DataError, MtpeftError
from mtpeft.files import (
    STRICT,
    check_seal,
    file_sha256,
    parse,
    read_json,
    read_tensors,
    sealed,
    unsealed,
    within,
    write_folder,
    write_json,
    write_tensors,
)
from mtpeft.names import SHARED, brief, check_head_name, check_task_name

FORMAT = 2
DESCRIPTION = "adapter.json"
Tensors = dict[str, Tensor]
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,99}")


@dataclass
class SavedMethod:
    """A configured method by what it is registered as.

    Attributes:
        name: how the host calls it.
        id: its registered id; None for a class that no plugin registers, which the caller must bring.
        package, version: the distribution that registers it, to be named where it is missing.
    """

    __pydantic_config__ = STRICT

    name: str
    id: str | None = None
    package: str = ""
    version: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class HeadSpec:
    """What a head is built from.

    Attributes:
        type: the task type whose head it is (``cls``, ``det``, ``seg``, or a plugin's); empty where nobody said.
        classes: names of its classes, in the order of its outputs.
        settings: fields of the task type, such as ``head_config``.
    """

    __pydantic_config__ = STRICT

    type: str = ""
    classes: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class Fingerprint:
    """The frozen backbone: its ``arch.tag`` and the sha256 of its weights."""

    __pydantic_config__ = STRICT

    name: str
    sha256: str


@dataclass
class AdapterContents:
    """Everything that makes a host beside its backbone.

    Attributes:
        frozen: owners that train no more.
        head_of: task -> head.
        groups: heads that the tasks of a group share.
        owners: owner -> ``METHOD/SITE/TENSOR`` -> tensor.
        head_tensors: head -> its state dict.
        kept: method -> what its routine keeps.
        extra: what the caller adds, as JSON.
    """

    backbone: Fingerprint
    image_size: tuple[int, int]
    methods: list[SavedMethod] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    frozen: list[str] = field(default_factory=list)
    heads: dict[str, HeadSpec] = field(default_factory=dict)
    head_of: dict[str, str] = field(default_factory=dict)
    groups: list[str] = field(default_factory=list)
    owners: dict[str, Tensors] = field(default_factory=dict)
    head_tensors: dict[str, Tensors] = field(default_factory=dict)
    kept: dict[str, Tensors] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def files(self) -> Iterator[tuple[str, Tensors]]:
        """File names and their tensors."""
        yield from ((owner_file(owner), tensors) for owner, tensors in self.owners.items())
        yield from ((f"head.{name}.safetensors", tensors) for name, tensors in self.head_tensors.items())
        yield from ((f"method.{name}.safetensors", tensors) for name, tensors in self.kept.items() if tensors)

    @property
    def count(self) -> int:
        """How many tensors it holds."""
        return sum(len(tensors) for _, tensors in self.files())

    @property
    def numbers(self) -> int:
        """How many numbers all its tensors hold."""
        return sum(tensor.numel() for _, tensors in self.files() for tensor in tensors.values())


@dataclass
class _File:
    """``adapter.json``."""

    __pydantic_config__ = STRICT

    format: Literal[2]
    backbone: Fingerprint
    image_size: tuple[int, int]
    methods: list[SavedMethod]
    tasks: list[str]
    frozen: list[str]
    heads: dict[str, HeadSpec]
    head_of: dict[str, str]
    groups: list[str]
    files: dict[str, str]
    extra: dict[str, Any] = field(default_factory=dict)


def owner_file(owner: str) -> str:
    """The file of an owner's tensors."""
    return f"{SHARED}.safetensors" if owner == SHARED else f"task.{owner}.safetensors"


def write_adapter(contents: AdapterContents, directory: Path) -> None:
    """Write an adapter folder in one step; an adapter that is there is replaced.

    Raises:
        MtpeftError: where it cannot be written, or the folder holds other files; what was there stays.
    """
    _refuse_other_files(directory)

    def fill(folder: Path) -> None:
        hashes = {}
        for name, tensors in contents.files():
            write_tensors(folder / name, tensors)
            hashes[name] = file_sha256(folder / name)
        write_json(folder / DESCRIPTION, _description(contents, hashes))

    write_folder(directory, fill)


def _description(contents: AdapterContents, hashes: Mapping[str, str]) -> dict[str, Any]:
    plain = {
        "format": FORMAT,
        "backbone": asdict(contents.backbone),
        "image_size": list(contents.image_size),
        "methods": [asdict(method) for method in contents.methods],
        "tasks": contents.tasks,
        "frozen": contents.frozen,
        "heads": {name: asdict(head) for name, head in contents.heads.items()},
        "head_of": contents.head_of,
        "groups": contents.groups,
        "files": dict(hashes),
        "extra": contents.extra,
    }
    return sealed(plain)


def _refuse_other_files(directory: Path) -> None:
    others = [p.name for p in directory.iterdir() if not _ours(p)] if directory.is_dir() else []
    if others:
        raise MtpeftError(
            f'"{directory}" holds other files, such as "{others[0]}"', hint="give the adapter a folder of its own"
        )


def _ours(path: Path) -> bool:
    return path.name == DESCRIPTION or (path.suffix == ".safetensors" and path.is_file())


def read_adapter(directory: Path) -> AdapterContents:
    """An adapter folder, every file checked against its sha256.

    Raises:
        MtpeftError: if it is no adapter folder, of another format, or one of its files is missing or changed.
    """
    path = within(directory, DESCRIPTION)
    data = read_json(path, missing="give an adapter folder: RUN/adapter, or what Host.save wrote")
    file = parse(_File, unsealed(data), f'"{path}"')
    _check_names(file, path)
    check_seal(data, path)
    contents = AdapterContents(
        file.backbone, file.image_size, file.methods, file.tasks, file.frozen, file.heads, file.head_of,
        file.groups, extra=file.extra,
    )  # fmt: skip
    contents.owners = {owner: _tensors(directory, owner_file(owner), file) for owner in (SHARED, *file.tasks)}
    contents.head_tensors = {name: _tensors(directory, f"head.{name}.safetensors", file) for name in file.heads}
    kept = {method.name: f"method.{method.name}.safetensors" for method in file.methods}
    contents.kept = {name: _tensors(directory, path, file) for name, path in kept.items() if path in file.files}
    return contents


def _check_names(file: _File, path: Path) -> None:
    """What names a file, or refers to another entry, is what it should be."""
    try:
        taken: dict[str, str] = {}
        for task in file.tasks:
            check_task_name(task, [other] if (other := taken.get(task.lower())) else [])
            taken[task.lower()] = task
        for head in file.heads:
            check_head_name(head)
    except MtpeftError as error:
        raise DataError(f'"{path}": {error.message}', hint=error.hint) from None
    tasks, methods = set(file.tasks), [method.name for method in file.methods]
    wrong = [f'frozen: "{brief(o)}" is no owner' for o in file.frozen if o != SHARED and o not in tasks]
    wrong += [f'head_of: "{brief(t)}" is no task' for t in file.head_of if t not in tasks]
    wrong += [f'head_of: "{brief(h)}" is no head' for h in file.head_of.values() if h not in file.heads]
    wrong += [f'groups: "{brief(g)}" is no head' for g in file.groups if g not in file.heads]
    wrong += [f'methods: "{brief(name)}" is no name' for name in methods if not _LABEL.fullmatch(name)]
    wrong += ["methods: two have one name"] if len(set(methods)) < len(methods) else []
    if min(file.image_size) < 1:
        wrong.append(f"image_size: {file.image_size} is no size")
    if wrong:
        raise DataError(f'"{path}": {wrong[0]}', hint="the file is damaged; take it from a copy")


def _tensors(directory: Path, name: str, file: _File) -> Tensors:
    """
    Raises:
        MtpeftError: if the file is missing, or is not what was written.
    """
    path = within(directory, name)
    if not path.exists():
        raise MtpeftError(f'"{path}" is missing', hint="the adapter folder is incomplete; take another copy")
    tensors = read_tensors(path)
    if file_sha256(path) != file.files.get(name):
        raise DataError(
            f'"{path}" is not what was written: its sha256 is another than {DESCRIPTION} says',
            hint="the file is damaged; take it from a copy",
        )
    return tensors
