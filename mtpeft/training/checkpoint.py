"""The resume state: everything a run needs to go on as if it had never stopped.

``state/`` holds one folder for each saved state and ``current.json``, which names the newest complete one with the
sha256 of its files. The pointer is replaced in one step, so a process killed at any moment leaves a complete state.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mtpeft.errors import MtpeftError
from mtpeft.files import STRICT, inventory, read_json, read_record, read_tensors, within, write_folder, write_json

_POINTER = "current.json"


@dataclass
class _Pointer:
    """``current.json``."""

    __pydantic_config__ = STRICT

    folder: str
    files: dict[str, str]


def save_state(folder: Path, number: int, fill: Callable[[Path], None]) -> Path:
    """Write state ``number`` with ``fill(folder)``, make it the current one, and remove those before it.

    Raises:
        MtpeftError: if it cannot be written; the state before it stays the current one.
    """
    name = _free_name(folder, number)
    write_folder(folder / name, fill)
    try:
        write_json(folder / _POINTER, {"folder": name, "files": inventory(folder / name)})
    except MtpeftError:
        shutil.rmtree(folder / name, ignore_errors=True)
        raise
    for other in folder.iterdir():
        if other.is_dir() and other.name != name:
            shutil.rmtree(other, ignore_errors=True)
    return folder / name


def _free_name(folder: Path, number: int) -> str:
    """A name for a state that no folder has: what the pointer names is never touched, not even by the same number."""
    names = (f"{number:09d}" + (f"-{again}" if again else "") for again in count())
    return next(name for name in names if not (folder / name).exists())


def current_state(folder: Path) -> Path:
    """The folder of the newest complete state.

    Raises:
        MtpeftError: if there is none, or one of its files is absent, truncated or changed.
    """
    if not (folder / _POINTER).exists():
        raise MtpeftError(
            f'"{folder}" holds no saved state', hint="nothing was saved yet: start again with another --out"
        )
    pointer = read_record(_Pointer, within(folder, _POINTER))
    state = within(folder, pointer.folder)
    found = inventory(state)
    for name, digest in pointer.files.items():
        if found.get(name) != digest:
            what = "is damaged or truncated" if name in found else "is gone"
            raise MtpeftError(
                f'"{state / name}" {what}, so this run cannot be resumed', hint="start again with another --out"
            )
    return state


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimizer's moments, keyed ``MOMENT/PARAMETER``."""
    return {
        f"{moment}/{name}": value
        for name, parameter in parameters.items()
        for moment, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Take back what `optimizer_tensors` gave; a step counter stays where the optimizer keeps it, on the CPU."""
    for key, value in tensors.items():
        moment, name = key.split("/", 1)
        parameter = parameters[name]
        optimizer.state[parameter][moment] = value if moment == "step" else value.to(parameter.device)


def random_state() -> dict[str, Tensor]:
    """The global generators' states, as uint8 tensors."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def restore_random(states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available():
        for name, state in states.items():
            if name != "cpu":
                torch.cuda.set_rng_state(state, int(name.removeprefix("cuda")))


def prefixed(groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """``{group: {name: tensor}}`` to one dictionary keyed ``GROUP/NAME``."""
    return {f"{group}/{name}": tensor for group, tensors in groups.items() for name, tensor in tensors.items()}


def grouped(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What `prefixed` joined, apart again."""
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        group, name = key.split("/", 1)
        groups.setdefault(group, {})[name] = tensor
    return groups


def write_state(folder: Path, position: dict[str, Any], tensors: Mapping[str, dict[str, Tensor]]) -> None:
    """One JSON file for the position and one safetensors file for each of ``tensors``; `save_state` syncs them."""
    (folder / "position.json").write_text(json.dumps(position))
    for name, group in tensors.items():
        plain = {key: tensor.detach().cpu().contiguous() for key, tensor in group.items()}
        save_file(plain, folder / f"{name}.safetensors")


def read_state(folder: Path, names: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """What `write_state` wrote."""
    return read_json(folder / "position.json"), {name: read_tensors(folder / f"{name}.safetensors") for name in names}
