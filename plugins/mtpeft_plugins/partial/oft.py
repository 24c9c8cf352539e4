"""OFT (NeurIPS 2023, arXiv 2306.07280): the weight times a block-diagonal rotation of its inputs.

``W' = W R`` with blocks ``R_k = (I + Q_k)(I - Q_k)^-1`` and skew-symmetric ``Q_k``, zero at the start. The inverse is
exact, where HF PEFT's default is a truncated series, and so ``R`` is orthogonal. The neurons of a convolution are its
flattened filters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mtpeft.api import Declarations, Method, Site, WeightPart, zeros


def block_size(width: int, largest: int) -> int:
    """The largest divisor of ``width`` that is at most ``largest``."""
    return next(b for b in range(min(width, largest), 0, -1) if width % b == 0)


def cayley_change(skew: Tensor) -> Tensor:
    """``R - I`` for ``R = (I + Q)(I - Q)^-1``, zero bit for bit where ``Q (..., b, b)`` is."""
    eye = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device).expand_as(skew)
    return torch.linalg.solve(eye - skew, 2 * skew, left=False)


def turn_blocks(weight: Tensor, change: Tensor) -> Tensor:
    """``W (out, in)`` with the inputs of block ``k`` multiplied by ``I + change_k``; ``change (in / b, b, b)``."""
    blocks = weight.unflatten(1, change.shape[:2])  # (out, in / b, b)
    return weight + torch.einsum("onb,nbc->onc", blocks, change).flatten(1)


class Rotation(WeightPart):
    """The upper triangles of the blocks: ``(in / b, b (b - 1) / 2)``."""

    def __init__(self, site: Site, block: int) -> None:
        super().__init__()
        width = site.matrix_shape[1]
        self.block = block_size(width, block)
        self.Q = zeros(width // self.block, self.block * (self.block - 1) // 2)

    def change(self) -> Tensor:
        rows, columns = torch.triu_indices(self.block, self.block, 1, device=self.Q.device)
        upper = self.Q.new_zeros(len(self.Q), self.block, self.block)
        upper[:, rows, columns] = self.Q
        return cayley_change(upper - upper.mT)

    def forward(self, weight: Tensor) -> Tensor:
        return turn_blocks(weight.flatten(1), self.change()).view_as(weight)


@dataclass
class Oft(Method):
    """Rotates the inputs of each chosen weight in blocks of the largest size up to ``block`` that divides them."""

    declares = Declarations(
        category="partial", mergeable=True, families="all", paper="OFT, NeurIPS 2023, arXiv 2306.07280"
    )

    at: str = "attn.q attn.v | mlp.fc1 mlp.fc2 | conv"
    block: int = 32

    def __post_init__(self) -> None:
        self.require(self.block >= 2, f"block is {self.block}", "a rotation needs at least 2 inputs")

    def part(self, site: Site) -> WeightPart | None:
        part = Rotation(site, self.block)
        return part if part.Q.numel() else None
