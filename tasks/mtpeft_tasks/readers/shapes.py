"""The pixels of one object: polygons, and the run lengths of COCO's masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

Box = tuple[float, float, float, float]
_FAR = 2**32
"""No image has so many pixels."""
_CHARACTERS = 7
"""Of one run length at most: 35 bits."""


@dataclass(frozen=True, slots=True, eq=False)
class Polygons:
    """The union of polygons, each even-odd inside; ``points`` are ``(N, 2) float32`` of x and y in pixels."""

    points: tuple[np.ndarray, ...]

    def extent(self) -> Box:
        """The box around them, xyxy; of no area where none has three points."""
        drawn = [points for points in self.points if len(points) > 2] or [self.points[0][:1]]
        every = np.concatenate(drawn)
        left, top = every.min(0).tolist()
        right, bottom = every.max(0).tolist()
        return left, top, right, bottom

    def state(self) -> bytes:
        """All that it says, for a hash."""
        return b";".join(points.tobytes() for points in self.points)

    def mask(self, size: tuple[int, int]) -> np.ndarray:
        """``(H, W) bool``, by COCO's own rule; what is outside is left out."""
        from faster_coco_eval.core import mask as coco

        height, width = size
        limit = np.array([width, height], np.float32)  # the rasteriser walks along edges, however far they lead
        lists = [points.clip(-limit, 2 * limit).ravel().tolist() for points in self.points if len(points) > 2]
        runs = [decoded(found["counts"]) for found in coco.frPyObjects(lists, height, width)] if lists else []
        return reduce(np.logical_or, [pixels(counts, size) for counts in runs] or [np.zeros((width, height), bool).T])


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """COCO's run lengths ``(N,) int64``, column by column from the top left, beginning with what is not the object."""

    counts: np.ndarray
    size: tuple[int, int]

    def extent(self) -> Box:
        """The box around the object, xyxy; of no area where it has no pixel."""
        mask = self.mask(self.size)
        rows, columns = np.flatnonzero(mask.any(1)).tolist(), np.flatnonzero(mask.any(0)).tolist()
        if not rows:
            return 0.0, 0.0, 0.0, 0.0
        return float(columns[0]), float(rows[0]), columns[-1] + 1.0, rows[-1] + 1.0

    def state(self) -> bytes:
        """All that it says, for a hash."""
        return self.counts.tobytes()

    def mask(self, size: tuple[int, int]) -> np.ndarray:
        """``(H, W) bool``; ``size`` is its own."""
        return pixels(self.counts, size)


Shape = Polygons | Runs


def polygons(lists: Sequence[Any]) -> Polygons:
    """Lists of ``x1, y1, x2, y2, ...`` in pixels.

    Raises:
        ValueError: saying in words what does not fit.
    """
    return Polygons(tuple(_points(number, values) for number, values in enumerate(lists)))


def _points(number: int, values: Any) -> np.ndarray:
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        raise ValueError(f"polygon {number} is no list of numbers")
    if not values or len(values) % 2:
        raise ValueError(f"polygon {number} has {len(values)} numbers, not pairs of x and y")
    if not all(abs(value) < _FAR for value in values):  # nor one that is not a number
        raise ValueError(f"polygon {number} has a coordinate that is not finite")
    return np.array(values, np.float32).reshape(-1, 2)


def runs(counts: Any, size: Any) -> Runs:
    """Run lengths as COCO writes them, a list or compressed to text, of a mask of ``[height, width]``.

    Raises:
        ValueError: saying in words what does not fit.
    """
    if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int and 0 < side < _FAR for side in size):
        raise ValueError(f"size {size} is not [height, width]")
    if isinstance(counts, str):
        lengths = decoded(counts.encode("ascii", "replace"))
    elif isinstance(counts, list) and all(type(value) is int and abs(value) < _FAR for value in counts):
        lengths = np.array(counts, np.int64)
    else:
        raise ValueError("counts are neither a text nor a list of whole numbers")
    area = size[0] * size[1]
    if (lengths < 0).any() or (lengths > area).any() or lengths.sum() != area:
        raise ValueError(f"counts do not add up to the {size[0]} x {size[1]} pixels of size")
    return Runs(lengths, (size[0], size[1]))


def decoded(text: bytes) -> np.ndarray:
    """Run lengths ``(N,) int64`` from COCO's compressed form.

    A number is characters of six bits after "0": five of value, least first, and one that says whether more follow; the
    last one's fifth bit is the sign. From the fourth on, numbers are differences to the last but one.

    Raises:
        ValueError: for what is no such text.
    """
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    last = (codes & 32) == 0
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or not last[-1]:
        raise ValueError("counts are no compressed run lengths")
    starts = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    place = np.arange(len(codes)) - np.repeat(starts, np.diff(starts, append=len(codes)))
    if place.max() >= _CHARACTERS:
        raise ValueError("counts are no compressed run lengths")
    values = np.add.reduceat((codes & 31) << (5 * place), starts)
    values -= np.where(codes[last] & 16, 1 << (5 * (place[last] + 1)), 0)
    values[1::2], values[2::2] = values[1::2].cumsum(), values[2::2].cumsum()
    return values


def pixels(counts: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Run lengths as a mask ``(H, W) bool``, column after column in memory."""
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(size[::-1]).T
