"""Decoded samples on the disk: what takes long to read is read once."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mtpeft.errors import DataError, UsageError
from mtpeft.files import STRICT, explained, open_regular, parse
from mtpeft.task import Dataset, Sample

_IMAGE = "image"
_TARGET = "target."


class Decoded(Dataset):
    """The samples of another data set, each kept uncompressed when it is first read, and the same from then on.

    A sample is one file, which holds the image at its full size: 3 bytes for each pixel, and its target. Several
    processes may fill a folder at once, and a file that cannot be read is made anew.

    Args:
        whole: the data set.
        folder: where its samples are kept, and nothing else; made with the first of them.

    Raises:
        UsageError: for a sample that is not the same when it is read again, because its target holds more than tensors
            and plain values.
        MtpeftError: where nothing can be written.
    """

    def __init__(self, whole: Dataset, folder: Path) -> None:
        self.whole, self.folder, self.classes, self.left_out = whole, folder, whole.classes, whole.left_out

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, index: int) -> Sample:
        path = self.folder / f"{index}.safetensors"
        try:
            return _read(path)
        except (OSError, SafetensorError, ValueError, DataError):
            sample = self.whole[index]
            _write(path, sample)
            return sample

    def origin(self, index: int) -> str:
        return self.whole.origin(index)

    def shown(self, index: int) -> frozenset[str] | None:
        return self.whole.shown(index)

    def manifest(self) -> dict[str, Any]:
        return self.whole.manifest()


def place(root: Path, about: Mapping[str, Any], data: Dataset) -> Path:
    """The folder of a data set's samples below ``root``: another one for other data, or data read in another way.

    Args:
        about: what else than its files makes the data set: settings of the task, the split, seeds.

    Raises:
        UsageError: for data whose manifest has no hash, so that nobody would know that it has changed.
    """
    manifest = data.manifest()
    if "sha256" not in manifest:
        hint = 'leave cache out; the author of the data\'s reader can add a "sha256" to its manifest'
        raise UsageError("this data cannot be cached: nothing says whether it has changed", hint=hint)
    text = json.dumps([about, manifest], sort_keys=True, default=str)
    return root / sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


@dataclass(frozen=True)
class _About:
    """What is beside the tensors in a file: the order of the target's keys, its plain values, which are tuples."""

    __pydantic_config__ = STRICT

    name: str
    order: list[str]
    plain: dict[str, Any]
    tuples: list[str]


def _read(path: Path) -> Sample:
    """
    Raises:
        OSError, SafetensorError, ValueError, DataError: for a file that is absent, damaged, or none of this cache's.
    """
    open_regular(path).close()
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no mapping)
        about = parse(_About, json.loads((file.metadata() or {}).get("about", "null")), f'"{path}"')
    pixels = tensors.pop(_IMAGE, torch.zeros(0))
    found = {key.removeprefix(_TARGET): value for key, value in tensors.items()}
    is_image = pixels.dtype == torch.uint8 and pixels.ndim == 3 and pixels.shape[-1] == 3
    if not is_image or {*found, *about.plain} != {*about.order}:
        raise ValueError(f'"{path}" is no sample')
    plain = {key: tuple(value) if key in about.tuples else value for key, value in about.plain.items()}
    target = {key: found[key] if key in found else plain[key] for key in about.order}
    return Sample(Image.fromarray(pixels.numpy()), target, about.name)


def _write(path: Path, sample: Sample) -> None:
    plain = {key: value for key, value in sample.target.items() if not isinstance(value, Tensor)}
    tensors = {f"{_TARGET}{key}": _own(sample.target[key]) for key in sample.target if key not in plain}
    tensors[_IMAGE] = torch.from_numpy(np.array(sample.image))
    tuples = [key for key, value in plain.items() if isinstance(value, tuple)]
    about = {"name": sample.name, "order": list(sample.target), "plain": plain, "tuples": tuples}
    temporary = path.with_name(f"{path.stem}-{os.getpid()}.tmp")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(tensors, temporary, {"about": _as_json(about)})
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _own(value: Tensor) -> Tensor:
    """Contiguous, in memory of its own."""
    return value.detach().clone(memory_format=torch.contiguous_format)


def _as_json(about: dict[str, Any]) -> str:
    untupled = {key: list(value) if isinstance(value, tuple) else value for key, value in about["plain"].items()}
    try:
        text = json.dumps(about)
        same = json.loads(text)["plain"] == untupled
    except (TypeError, ValueError):
        same = False
    if not same:
        hint = "leave cache out; targets that can be kept hold tensors, numbers, texts, and lists or tuples of them"
        raise UsageError(f'the target of "{about["name"]}" cannot be cached', hint=hint)
    return text
