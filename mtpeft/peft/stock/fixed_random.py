"""Random numbers that are part of a method's definition: the same on every machine and in every version."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

FixedSeed = Annotated[int, Field(ge=0, lt=2**20, description="a whole number from 0 to 1048575")]
"""A setting: the seed of `fixed_uniform`."""

_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def fixed_uniform(seed: int, *shape: int) -> Tensor:
    """Draws numbers in [0, 1) from a seed alone (SplitMix64 in wrapping integers), never from a library's generator.

    Bases drawn from it need no room on disk.

    Args:
        seed: from 0 to 2**20 - 1.
        shape: of the result, which is fp32.
    """
    index = torch.arange(1, 1 + torch.Size(shape).numel()) + (seed << 40)
    mixed = index * _signed(_STEP)
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        mixed = (mixed ^ _shift(mixed, shift)) * _signed(factor)
    mixed = mixed ^ _shift(mixed, 31)
    return (_shift(mixed, 40).double() / 2**24).float().view(shape)


def _signed(number: int) -> int:
    """An unsigned 64-bit number as the signed one with the same bits."""
    return number - 2**64 if number >= 2**63 else number


def _shift(number: Tensor, by: int) -> Tensor:
    """Logical right shift."""
    return (number >> by) & (2 ** (64 - by) - 1)
