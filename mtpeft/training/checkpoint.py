"""The resume state: everything a run needs to go on as if it had never stopped.

``state/`` holds one folder for each saved state and ``current.json``, which names the newest complete one with the
sha256 of its files. The pointer is replaced in one step, so a process killed at any moment leaves a complete state.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from mtpeft.errors import DataError, MtpeftError
from mtpeft.files import STRICT, inventory, read_record, read_tensors, within, write_folder, write_json, write_tensors
from mtpeft.training.optimizer import group_counters, set_group_counters
from mtpeft.training.position import Position
from mtpeft.training.validation import Best

_POINTER, _POSITION = "current.json", "position.json"
_NUMBER, _GROUP = "#", "group"
_HINT = "take the run from a copy, or start again with another --out"


def save_state(folder: Path, number: int, fill: Callable[[Path], None]) -> Path:
    """Write state ``number`` with ``fill(folder)``, make it the current one, and remove those before it.

    Raises:
        MtpeftError: if it cannot be written; the state before it stays the current one.
    """
    name = _free_name(folder, number)
    write_folder(folder / name, fill)
    try:
        write_json(folder / _POINTER, {"folder": name, "files": inventory(folder / name)})
    except BaseException:
        if _pointed_at(folder) != name:
            shutil.rmtree(folder / name, ignore_errors=True)
        raise
    for other in folder.iterdir():
        if other.is_dir() and other.name != name:
            shutil.rmtree(other, ignore_errors=True)
    return folder / name


def _pointed_at(folder: Path) -> str:
    """The name of the current state; empty where there is none."""
    return _pointer(folder).folder if has_state(folder) else ""


def _free_name(folder: Path, number: int) -> str:
    """A name for a state that no folder has: what the pointer names is never touched, not even by the same number."""
    names = (f"{number:09d}" + (f"-{again}" if again else "") for again in count())
    return next(name for name in names if not (folder / name).exists())


@dataclass
class _Pointer:
    """``current.json``: the folder of the newest complete state, and the sha256 of each of its files."""

    __pydantic_config__ = STRICT

    folder: Annotated[str, Field(pattern=r"^[0-9]{9,}(-[0-9]+)?$")]
    files: dict[str, str]


def _pointer(folder: Path) -> _Pointer:
    return read_record(_Pointer, within(folder, _POINTER))


def has_state(folder: Path) -> bool:
    """Whether a state was ever saved there."""
    return (folder / _POINTER).exists()


def current_state(folder: Path) -> Path:
    """The folder of the newest complete state: by its content, should its name have been lost.

    Raises:
        MtpeftError: if there is none, or one of its files is absent, truncated or changed.
    """
    if not has_state(folder):
        raise MtpeftError(
            f'"{folder}" holds no saved state', hint="nothing was saved yet: start again with another --out"
        )
    pointer = _pointer(folder)
    for state in sorted(folder.iterdir(), key=lambda place: place.name != pointer.folder):
        if state.is_dir() and inventory(state) == pointer.files:
            return within(folder, state.name)
    raise MtpeftError(_damage(folder / pointer.folder, pointer.files), hint="start again with another --out")


def _damage(state: Path, files: Mapping[str, str]) -> str:
    """What is wrong with a state, in words."""
    hashes = inventory(state)
    changed = [name for name, digest in files.items() if hashes.get(name) != digest]
    name = (changed or sorted(hashes.keys() - files.keys()) or [""])[0]
    what = "is gone" if name not in hashes else "is damaged or truncated" if name in files else "does not belong there"
    return f'"{state / name}" {what}, so this run cannot be resumed'


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Moments, ``MOMENT/PARAMETER``, and counters, ``group/NAME``; the names of plain numbers begin with ``#``."""
    kept: dict[str, Tensor] = {}
    holders = {name: optimizer.state.get(parameter, {}) for name, parameter in parameters.items()}
    values = [(_GROUP, name, value) for name, value in group_counters(optimizer).items()]
    values += [(moment, name, value) for name, state in holders.items() for moment, value in state.items()]
    for moment, name, value in values:
        if isinstance(value, Tensor):
            kept[f"{moment}/{name}"] = value
        elif isinstance(value, int | float):
            kept[f"{_NUMBER}{moment}/{name}"] = torch.tensor(value)
    return kept


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Take back what `optimizer_tensors` gave; a step counter stays where the optimizer keeps it, on the CPU.

    Raises:
        DataError: for a tensor that belongs to no parameter.
    """
    for key, tensor in tensors.items():
        moment, _, name = key.removeprefix(_NUMBER).partition("/")
        value = tensor.item() if key.startswith(_NUMBER) else tensor
        if moment == _GROUP:
            set_group_counters(optimizer, {name: value})
        elif name not in parameters:
            raise DataError(f'the saved optimizer has a tensor "{key}" of nothing that trains', hint=_HINT)
        elif isinstance(value, Tensor) and moment != "step":
            optimizer.state[parameters[name]][moment] = value.to(parameters[name].device)
        else:
            optimizer.state[parameters[name]][moment] = value


def random_state() -> dict[str, Tensor]:
    """The global generators' states, as uint8 tensors."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def restore_random(states: Mapping[str, Tensor]) -> None:
    """
    Raises:
        DataError: for what is no state of a generator.
    """
    try:
        torch.set_rng_state(states["cpu"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise DataError("the saved state of the random generator is damaged", hint=_HINT) from error
    if torch.cuda.is_available():
        for name, state in states.items():
            if name != "cpu":
                torch.cuda.set_rng_state(state, int(name.removeprefix("cuda")))


@dataclass
class Saved:
    """``position.json``: where a training stands, what validation has seen, and the results so far."""

    __pydantic_config__ = STRICT

    at: Position
    validation: Best
    matrix: dict[str, Any]


def write_state(folder: Path, saved: Saved, tensors: Mapping[str, dict[str, Tensor]]) -> None:
    """One JSON file for the position and one safetensors file for each of ``tensors``; `save_state` syncs them."""
    (folder / _POSITION).write_text(json.dumps(asdict(saved)))
    for name, group in tensors.items():
        write_tensors(folder / f"{name}.safetensors", group)


def read_position(folder: Path) -> Saved:
    """
    Raises:
        MtpeftError: naming the field that is wrong.
    """
    return read_record(Saved, folder / _POSITION)


def read_state(folder: Path, names: tuple[str, ...]) -> tuple[Saved, dict[str, dict[str, Tensor]]]:
    """What `write_state` wrote."""
    return read_position(folder), {name: read_tensors(folder / f"{name}.safetensors") for name in names}
