"""Weights out of a file that a user or a run's configuration names: tensors and plain values, never pickled objects."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from timm.models import clean_state_dict

from mtpeft.errors import DataError, MtpeftError
from mtpeft.files import open_regular, read_tensors
from mtpeft.names import brief

_ARRAYS = (".npz", ".npy")
_STATES = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Where training checkpoints keep a state dict; the first that is there is taken, as timm does."""
_CONVERT = "save the state dict anew, as safetensors or with torch.save(model.state_dict(), FILE)"
_MISSING = "give --weights the path of a local file"


def read_weights(path: Path) -> dict[str, Any]:
    """The state dict in a safetensors file or a file of `torch.save`, whose unpickler takes tensors and plain values.

    Of a training checkpoint, the averaged weights come first, as in timm.

    Raises:
        MtpeftError: for a file that is absent, no regular file, damaged, of another format, or of more than tensors.
    """
    if not path.is_file():
        raise MtpeftError(f'there is no weights file "{path}"', hint=_MISSING)
    if path.suffix.lower() in _ARRAYS:
        raise DataError(f'"{path}" holds NumPy arrays, which are not loaded as weights', hint=_CONVERT)
    content = read_tensors(path, _MISSING) if path.suffix == ".safetensors" else _without_objects(path)
    state = _state_of(content)
    if not state:
        raise DataError(f'"{path}" holds no state dict', hint=_CONVERT)
    return clean_state_dict(dict(state))


def _without_objects(path: Path) -> Any:
    try:
        # checkpoints of many training scripts keep their arguments in a Namespace, which holds values and runs nothing
        with open_regular(path) as file, torch.serialization.safe_globals([Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        message = f'"{path}" is damaged, or holds objects beside tensors, which could run code; it is not loaded'
        raise DataError(message, hint=_CONVERT) from error
    except Exception as error:  # whatever a damaged file makes torch's reader raise
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(f'"{path}" holds no weights that torch can read: {brief(reason)}', hint=_CONVERT) from error


def _state_of(content: Any) -> Mapping[str, Any]:
    """The state dict itself, or the one in a training checkpoint."""
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        return {}
    state = next((content[key] for key in _STATES if content.get(key) is not None), content)
    return state if isinstance(state, Mapping) and all(isinstance(name, str) for name in state) else {}
