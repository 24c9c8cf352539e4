"""What a path is: the readers that recognise its layout, and the task types that learn from what they give."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from mtpeft.addresses import DataAddress, absolute, existing
from mtpeft.data.reader import open_reader
from mtpeft.errors import DataError, MtpeftError, UsageError, did_you_mean
from mtpeft.plugins import registry, resolve


@dataclass(frozen=True)
class ReaderChoice:
    """How a data set is looked at.

    Attributes:
        address: the data, and who reads it.
        types: the task types that learn from it, best first: in the order of what the reader gives.
        recognised: the readers that recognise the path; empty where one was named.
    """

    address: DataAddress
    types: tuple[str, ...]
    recognised: tuple[str, ...] = ()

    @property
    def data(self) -> str:
        """The address as one writes it."""
        return str(self.address)

    @property
    def name(self) -> str:
        """A name for a task on this data: the last part of the path, of letters, digits, ``-`` and ``_``."""
        words = re.findall(r"\w+", Path(absolute(self.address.path, Path.cwd())).name.lower(), re.ASCII)
        return "-".join(words) or self.address.reader


def choose(data: str, type: str = "") -> ReaderChoice:
    """Find out how to read ``PATH?option=value`` or ``READER:PATH?option=value``.

    Args:
        type: the task type that is asked for; only readers that give its target come into question.

    Raises:
        UsageError: where several readers recognise the path or none does, an unknown task type, or a reader that does
            not give what it needs.
        DataError: if there is nothing at the path.
    """
    if type:
        resolve("tasks", type)
    address = _named(data)
    if address is not None and address.reader in registry("readers"):
        return ReaderChoice(address, _types(address, type))
    bare = DataAddress("", data) if existing(data) else DataAddress.without_reader(data)
    place = existing(bare.path)
    if place is None:
        raise _nothing(data, address)
    recognised = tuple(name for name in registry("readers") if _recognises(name, place, type))
    if len(recognised) == 1:
        chosen = replace(bare, reader=recognised[0])
        return ReaderChoice(chosen, _types(chosen, type), recognised)
    if recognised:
        ways = " or ".join(f"mtpeft data {replace(bare, reader=name)}" for name in recognised)
        raise UsageError(f'"{data}" looks like data for {" and for ".join(recognised)}', hint=f"choose: {ways}")
    known, purpose = ", ".join(registry("readers")), f" as data for {type}" if type else ""
    raise UsageError(
        f'no reader recognises "{data}"{purpose}',
        hint=f"name one: mtpeft data READER:{data}; there is: {known}. `mtpeft tasks` says what each reads.",
    )


def _named(data: str) -> DataAddress | None:
    """None for a text that names no reader."""
    try:
        return DataAddress.parse(data)
    except UsageError:
        return None


def _nothing(data: str, address: DataAddress | None) -> MtpeftError:
    if address is not None:
        message, readers = f'there is no reader "{address.reader}"', registry("readers")
        return UsageError(message, hint=did_you_mean(address.reader, readers))
    return DataError(f'there is no "{data}"', hint="give a folder or file, or READER:PATH")


def _recognises(name: str, place: Path, type: str) -> bool:
    """Whether a reader takes the path; one that cannot be loaded takes none."""
    try:
        reader, _ = open_reader(f"{name}:.")
    except MtpeftError:
        return False
    return (not type or resolve("tasks", type).gives in reader.gives) and reader.recognises(place)


def _types(address: DataAddress, type: str) -> tuple[str, ...]:
    """The task types for what a reader gives, in its order; the one that is asked for alone."""
    reader, _ = open_reader(str(address))
    taken = {name: _target(name) for name in registry("tasks")}
    found = tuple(name for given in reader.gives for name, target in taken.items() if target == given)
    name, gives = address.reader, ", ".join(reader.gives)
    if not found:
        raise UsageError(f'no task type learns from what reader "{name}" gives: {gives}', hint="install one")
    if type and type not in found:
        raise UsageError(
            f'reader "{name}" gives no {taken[type] or "data"} for {type}', hint=f"its samples have: {gives}."
        )
    return (type,) if type else found


def _target(name: str) -> str:
    """What a task type needs; nothing where it cannot be loaded."""
    try:
        return resolve("tasks", name).gives
    except MtpeftError:
        return ""
