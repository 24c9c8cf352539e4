"""How LoRA's factors may start: at random, or from the frozen weight or its inputs.

PiSSA (NeurIPS 2024, arXiv 2404.02948), OLoRA (arXiv 2406.01775), orthogonal, EVA (arXiv 2410.07170). Each function
gives ``A (r, in)`` and ``B (out, r)`` for a matrix ``W (out, in)`` and LoRA's scale ``s``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mtpeft.api import UsageError

Factors = tuple[Tensor, Tensor]


def pissa(weight: Tensor, rank: int, scale: float) -> Factors:
    """The leading part of ``W = U S V^T``: ``s B A = U_r S_r V_r^T``, the singular values halved between both."""
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    root = (values[:rank] / scale).sqrt()
    return root[:, None] * right[:rank], left[:, :rank] * root


def olora(weight: Tensor, rank: int, scale: float) -> Factors:
    """The leading part of ``W = Q R``: ``B = Q_r`` and ``s A = R_r``."""
    q, r = torch.linalg.qr(weight)
    return r[:rank] / scale, q[:, :rank]


def orthogonal(weight: Tensor, rank: int, scale: float) -> Factors:
    """Random factors with ``B A = 0``: their rows and columns lie along different halves of one orthogonal basis."""
    out, into = weight.shape
    half = (rank + 1) // 2
    basis, _ = torch.linalg.qr(torch.randn(rank, rank))
    odd, even = basis[:half], basis[half:]  # (half, r), (r - half, r)
    a = torch.randn(into, half) @ odd / 10
    b = torch.randn(out, rank - half) @ even / 10
    return a.t().contiguous(), b


def principal_directions(gram: Tensor, total: Tensor, count: int, rank: int) -> Tensor:
    """``A (r, in)``: the directions along which the inputs vary most.

    Args:
        gram: ``sum x x^T (in, in)`` over ``count`` inputs.
        total: ``sum x (in,)``.
    """
    mean = total / count
    _, vectors = torch.linalg.eigh(gram - count * torch.outer(mean, mean))
    return vectors.flip(1)[:, :rank].t()


FROM_WEIGHT: dict[str, Callable[[Tensor, int, float], Factors]] = {
    "pissa": pissa,
    "olora": olora,
    "orthogonal": orthogonal,
}


def start(init: str, weight: Tensor, rank: int, scale: float) -> Factors:
    """The factors of a weight ``(out, in)`` or ``(out, in, kh, kw)``, in its own type.

    Raises:
        UsageError: for a rank that the weight does not have.
    """
    matrix = weight.flatten(1).float()
    if rank > min(matrix.shape):
        raise UsageError(
            f'init = "{init}" takes rank {rank} from a weight of {matrix.shape[0]} x {matrix.shape[1]}',
            hint=f"give a rank of at most {min(matrix.shape)}, or leave such sites out with at",
        )
    a, b = FROM_WEIGHT[init](matrix, rank, scale)
    return a.reshape(rank, *weight.shape[1:]).to(weight), b.to(weight)


def fill_random(a: Tensor, init: str) -> None:
    """Kaiming-uniform with ``a = sqrt(5)``, or normal with deviation ``1 / r``; in place."""
    if init == "gaussian":
        torch.nn.init.normal_(a, std=1 / len(a))
    else:
        torch.nn.init.kaiming_uniform_(a, a=math.sqrt(5))
