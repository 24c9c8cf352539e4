"""BOFT (ICLR 2024, arXiv 2311.06243): a rotation as a product of butterfly factors, and a gain for each output.

``W' = diag(s) W R_1 ... R_M``. Each ``R_i`` is block-diagonal once the inputs, in groups of half a block, are ordered
so that group ``j`` meets group ``j + 2^(i-1)``; ``M`` factors so join ``2^M`` groups. As in the released code a block
is stored as a matrix ``(b, b)`` of which its skew part counts. HF PEFT falls back to ``M = 1`` without its CUDA
extension; this needs none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtpeft.api import Count, Declarations, Method, Site, WeightPart, zeros
from mtpeft_plugins.partial.oft import block_size, cayley_change, turn_blocks


def possible_factors(width: int, block: int, wanted: int) -> int:
    """How many butterfly factors of ``block`` a width takes, at most ``wanted``."""
    count = 1
    while count < wanted and block % 2 == 0 and width % (block * 2**count) == 0:
        count += 1
    return count


class Butterfly(WeightPart):
    """``A (M, in / b, b, b)`` zero, the skew part of which turns the inputs, and the gains ``(out,)``."""

    def __init__(self, site: Site, block: int, factors: int) -> None:
        super().__init__()
        out, width = site.matrix_shape
        block = block_size(width, block)
        self.A = zeros(possible_factors(width, block, factors), width // block, block, block)
        self.gain = nn.Parameter(torch.ones(out))

    def forward(self, weight: Tensor) -> Tensor:
        turned = weight.flatten(1)
        for index, change in enumerate(cayley_change((self.A - self.A.mT) / 2)):
            turned = turn_pairs(turned, change, 2**index)
        return (self.gain[:, None] * turned).view_as(weight)


def turn_pairs(weight: Tensor, change: Tensor, stride: int) -> Tensor:
    """Turn groups ``j`` and ``j + stride`` of half a block together; ``change (in / b, b, b)``."""
    if stride == 1:
        return turn_blocks(weight, change)
    half = change.shape[-1] // 2
    paired = weight.unflatten(1, (-1, 2, stride, half)).transpose(2, 3)  # (out, chunks, stride, 2, half)
    return turn_blocks(paired.flatten(1), change).view_as(paired).transpose(2, 3).flatten(1)


@dataclass
class Boft(Method):
    """Butterfly rotations of the inputs of each chosen weight; fewer ``factors`` where its width does not divide."""

    declares = Declarations(
        category="partial", mergeable=True, families="all", paper="BOFT, ICLR 2024, arXiv 2311.06243"
    )

    at: str = "attn.q attn.v | mlp.fc1 mlp.fc2 | conv"
    block: int = 8
    factors: Count = 2

    def __post_init__(self) -> None:
        self.require(self.block >= 2, f"block is {self.block}", "a rotation needs at least 2 inputs")

    def part(self, site: Site) -> WeightPart | None:
        part = Butterfly(site, self.block, self.factors)
        return part if part.A.shape[-1] > 1 else None
