"""LoRA's part, and how its factors may start: at random, or from the frozen weight or its inputs.

LoRA (ICLR 2022, arXiv 2106.09685), PiSSA (NeurIPS 2024, arXiv 2404.02948), OLoRA (arXiv 2406.01775), orthogonal, EVA
(arXiv 2410.07170). Factors are ``A (r, in)`` and ``B (out, r)`` for a matrix ``W (out, in)`` and LoRA's scale ``s``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mtpeft.errors import UsageError
from mtpeft.peft.parts import LowRankPart, zeros
from mtpeft.peft.sites import Site

Factors = tuple[Tensor, Tensor]


def pissa(weight: Tensor, rank: int, scale: float) -> Factors:
    """Takes the leading part of ``W = U S V^T``: ``s B A = U_r S_r V_r^T``, the singular values halved between both."""
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    root = (values[:rank] / scale).sqrt()
    return root[:, None] * right[:rank], left[:, :rank] * root


def olora(weight: Tensor, rank: int, scale: float) -> Factors:
    """Takes the leading part of ``W = Q R``: ``B = Q_r`` and ``s A = R_r``."""
    q, r = torch.linalg.qr(weight)
    return r[:rank] / scale, q[:, :rank]


def orthogonal(weight: Tensor, rank: int, scale: float) -> Factors:
    """Draws factors with ``B A = 0``: their rows and columns lie along different halves of one orthogonal basis."""
    out, into = weight.shape
    half = (rank + 1) // 2
    basis, _ = torch.linalg.qr(torch.randn(rank, rank))
    odd, even = basis[:half], basis[half:]  # (half, r), (r - half, r)
    a = torch.randn(into, half) @ odd / 10
    b = torch.randn(out, rank - half) @ even / 10
    return a.t().contiguous(), b


def principal_directions(gram: Tensor, total: Tensor, count: int, rank: int) -> Tensor:
    """Gives EVA's ``A (r, in)``: the directions along which the inputs vary most.

    Args:
        gram: ``sum x x^T (in, in)`` over ``count`` inputs.
        total: ``sum x (in,)``.
    """
    mean = total / count
    _, vectors = torch.linalg.eigh(gram - count * torch.outer(mean, mean))
    return vectors.flip(1)[:, :rank].t()


STARTS_FROM_WEIGHT: dict[str, Callable[[Tensor, int, float], Factors]] = {
    "pissa": pissa,
    "olora": olora,
    "orthogonal": orthogonal,
}


def factors_from_weight(init: str, weight: Tensor, rank: int, scale: float) -> Factors:
    """Gives ``A`` and ``B`` for a weight ``(out, in)`` or ``(out, in, kh, kw)``, in its own type.

    Args:
        init: a key of `STARTS_FROM_WEIGHT`.

    Raises:
        UsageError: for a rank that the weight does not have.
    """
    matrix = weight.flatten(1).float()
    if rank > min(matrix.shape):
        raise UsageError(
            f'init = "{init}" takes rank {rank} from a weight of {matrix.shape[0]} x {matrix.shape[1]}',
            hint=f"give a rank of at most {min(matrix.shape)}, or leave such sites out with at",
        )
    a, b = STARTS_FROM_WEIGHT[init](matrix, rank, scale)
    return a.reshape(rank, *weight.shape[1:]).to(weight), b.to(weight)


def fill_down(a: Tensor, init: str = "kaiming") -> None:
    """Fills ``A (r, ...)`` in place: ``kaiming`` (uniform, ``a = sqrt(5)``) or ``gaussian`` (deviation ``1 / r``)."""
    if init == "gaussian":
        torch.nn.init.normal_(a, std=1 / len(a))
    else:
        torch.nn.init.kaiming_uniform_(a, a=math.sqrt(5))


class LowRankUpdate(LowRankPart):
    """``W + s B A``; by default ``A (r, in)`` or ``(r, in, kh, kw)`` is Kaiming-uniform and ``B (out, r)`` zero.

    Args:
        init: ``kaiming`` or ``gaussian`` (see `fill_down`), or a key of `STARTS_FROM_WEIGHT`; then the part subtracts
            its own first product, so that it starts as an identity all the same.
        dropout: on the update's input, in training.
    """

    A0: Tensor
    B0: Tensor

    def __init__(self, site: Site, rank: int, scale: float, init: str = "kaiming", dropout: float = 0.0) -> None:
        super().__init__()
        self.scale, self.dropout, self.departs = scale, dropout, init in STARTS_FROM_WEIGHT
        shape = site.down_shape(rank)
        if self.departs:
            a, b = factors_from_weight(init, site.weight, rank, scale)
            self.A, self.B = nn.Parameter(a), nn.Parameter(b)
            self.register_buffer("A0", a.clone())
            self.register_buffer("B0", b.clone())
        else:
            self.A, self.B = nn.Parameter(torch.empty(shape)), zeros(site.out_features, rank)
            fill_down(self.A, init)

    def factors(self) -> tuple[Tensor, Tensor, float]:
        if not self.departs:
            return self.A, self.B, self.scale
        # B A - B0 A0 = (B - B0) A + B0 (A - A0), whose terms are exactly zero at the start
        return torch.cat([self.A, self.A - self.A0]), torch.cat([self.B - self.B0, self.B0], 1), self.scale
