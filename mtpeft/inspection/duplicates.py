"""Images that are in a data set twice: the same pixels, or nearly the same picture. Pure.

Near is decided on a thumbnail of 16 x 17 grey values. Its difference hash has 256 bits, each saying whether a pixel is
brighter than its left neighbour. Two pictures are near if at most `BITS` bits differ, and the thumbnails by at most
`GREYS` of 255 in the mean. Copies that were compressed or resized again are nearly always within both bounds; the
second keeps apart what has few bits to differ in, such as drawings on white. Cropped or mirrored copies are not found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

SIDE = 16
BITS = 16
GREYS = 3.0
_ROWS = 256  # images compared at a time: bounds the memory


@dataclass(frozen=True)
class Print:
    """An image's fingerprint: the sha256 of its size and pixels, and its thumbnail ``(16, 17) uint8``."""

    name: str
    digest: bytes
    thumbnail: np.ndarray = field(compare=False)


@dataclass
class Twins:
    """Images of the split ``of`` that are in the split ``also`` too, or earlier in the same; each with its twin.

    Attributes:
        exact: the names of those with the same pixels.
        near: the names of the others that look nearly the same.
    """

    of: str
    also: str
    exact: list[tuple[str, str]] = field(default_factory=list)
    near: list[tuple[str, str]] = field(default_factory=list)


def fingerprint(name: str, image: Image.Image) -> Print:
    """The fingerprint of an RGB image."""
    digest = hashlib.sha256(f"{image.size}".encode())
    digest.update(image.tobytes())
    small = image.convert("L").resize((SIDE + 1, SIDE), 4)  # 4: the mean of what each pixel covers
    return Print(name, digest.digest(), np.asarray(small))


def find_twins(prints: Mapping[str, Sequence[Print]]) -> list[Twins]:
    """The twins of every two splits and within each, where there are any."""
    found = []
    for also, of in combinations_with_replacement(prints, 2):
        twins, known = Twins(of, also), _first(prints[also])
        rest = []
        for one in prints[of]:
            other = known.get(one.digest, one)
            if other is one:
                rest.append(one)
            else:
                twins.exact.append((one.name, other.name))
        twins.near += _near(rest, rest if of == also else list(known.values()), earlier=of == also)
        if twins.exact or twins.near:
            found.append(twins)
    return found


def _first(prints: Sequence[Print]) -> dict[bytes, Print]:
    """The first image of each digest."""
    found: dict[bytes, Print] = {}
    for one in prints:
        found.setdefault(one.digest, one)
    return found


def _near(mine: Sequence[Print], others: Sequence[Print], *, earlier: bool) -> Iterator[tuple[str, str]]:
    """Each of ``mine`` that is near another, with the nearest; ``earlier``: only those before it count."""
    if not mine or not others:
        return
    hashes, pictures = _hashes(others), _thumbnails(others)
    for start in range(0, len(mine), _ROWS):
        rows = mine[start : start + _ROWS]
        distances = (SIDE * SIDE - _hashes(rows) @ hashes.T) / 2  # (rows, others)
        for row, one in enumerate(rows):
            candidates = np.flatnonzero(distances[row, : start + row if earlier else None] <= BITS)
            if len(candidates):
                greys = np.abs(pictures[candidates] - _thumbnails([one])).mean(1)
                if greys.min() <= GREYS:
                    yield one.name, others[int(candidates[greys.argmin()])].name


def _hashes(prints: Sequence[Print]) -> np.ndarray:
    """Bits as -1 and 1 ``(N, 256)``: the number that differ follows from a product."""
    pictures = np.stack([one.thumbnail for one in prints])
    return np.where(pictures[:, :, 1:] > pictures[:, :, :-1], 1, -1).reshape(len(prints), -1).astype(np.float32)


def _thumbnails(prints: Sequence[Print]) -> np.ndarray:
    return np.stack([one.thumbnail for one in prints]).reshape(len(prints), -1).astype(np.int16)
