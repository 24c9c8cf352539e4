"""What parts leave for later parts of the same pass, sample by sample: a later part may see more or fewer samples."""

from __future__ import annotations

import torch
from torch import Tensor

Pieces = tuple[tuple[int, int, Tensor], ...]
"""``(start, stop, tensor)`` in order of the batch; the tensor's first dimension is ``stop - start`` or a multiple."""


def written(pieces: Pieces, start: int, stop: int, tensor: Tensor) -> Pieces:
    """``pieces`` with the samples ``start:stop`` replaced."""
    others = [piece for low, high in ((0, start), (stop, _end(pieces))) for piece in _cut(pieces, low, high)]
    return tuple(sorted([*others, (start, stop, tensor)], key=lambda piece: piece[0]))


def read(pieces: Pieces, start: int, stop: int) -> Tensor:
    """The samples ``start:stop``."""
    found = [tensor for _, _, tensor in _cut(pieces, start, stop)]
    return found[0] if len(found) == 1 else torch.cat(found)


def _cut(pieces: Pieces, start: int, stop: int) -> list[tuple[int, int, Tensor]]:
    found = []
    for low, high, tensor in pieces:
        first, last = max(low, start), min(high, stop)
        if first < last:
            times = len(tensor) // (high - low)
            whole = (first, last) == (low, high)
            part = tensor if whole else tensor[(first - low) * times : (last - low) * times]
            found.append((first, last, part))
    return found


def _end(pieces: Pieces) -> int:
    return pieces[-1][1] if pieces else 0
