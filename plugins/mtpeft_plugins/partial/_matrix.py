"""The weight of a linear layer or convolution as a matrix, which most reparameterisations change."""

from __future__ import annotations

import math

from mtpeft.api import NotApplicable, Site


def matrix_shape(site: Site) -> tuple[int, int]:
    """``(out, in)`` of a site's weight; filters of a convolution count as flattened.

    Raises:
        NotApplicable: where there is no such weight, as in a norm, a bias or a whole attention.
    """
    if len(site.shape) not in (2, 4):
        raise NotApplicable(
            f"{site.name} has no weight matrix that could be changed",
            hint='choose linear layers or convolutions with at, such as "attn.q attn.v", "linear" or "conv"',
        )
    return site.shape[0], math.prod(site.shape[1:])


def down_shape(site: Site, rank: int) -> tuple[int, ...]:
    """``(r, in)`` or ``(r, in, kh, kw)``, of the first factor of a low-rank update.

    Raises:
        NotApplicable: as `matrix_shape`.
    """
    matrix_shape(site)
    return (rank, *site.shape[1:])
