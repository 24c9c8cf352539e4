"""FacT-TK (AAAI 2023, arXiv 2212.03145): all weights of a ViT as one stack of slices, in a Tucker decomposition.

As FacT-TT with ``Sigma_k = sum_j P_kj C_j``: the core ``C (r, r, r)`` is shared like ``U`` and ``V``, a slice owns the
``r`` numbers ``P_k`` alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtpeft.api import Count, Declarations, LowRankPart, Method, Positive, Site
from mtpeft_plugins.partial.fact_tt import SLICES, Ends, Slices, ends_by_width, slice_count


class TuckerEnds(Ends):
    """``U``, ``V`` and the core ``C (r, r, r)``."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__(width, rank)
        self.C = nn.Parameter(torch.empty(rank, rank, rank))
        nn.init.xavier_uniform_(self.C)


class Tucker(Slices):
    """``P (k, r)``: how each slice mixes the shared core."""

    def __init__(self, site: Site, rank: int, scale: float) -> None:
        super().__init__(site, scale)
        self.P = nn.Parameter(torch.empty(slice_count(site), rank))
        bound = math.sqrt(6 / (rank + 12 * len(site.model.blocks)))  # xavier over the slices of all layers
        nn.init.uniform_(self.P, -bound, bound)

    def cores(self) -> Tensor:
        return torch.einsum("kj,jab->kab", self.P, self.common[self.width].C)


@dataclass
class FactTk(Method):
    """One Tucker decomposition for all linear layers of the blocks."""

    declares = Declarations(
        category="partial",
        mergeable=True,
        families="transformers and ConvNeXt",
        paper="FacT, AAAI 2023, arXiv 2212.03145",
    )

    at: str = SLICES
    rank: Count = 32
    scale: Positive = 1.0

    def common(self, sites: Sequence[Site]) -> nn.Module:
        return ends_by_width(sites, TuckerEnds, self.rank)

    def part(self, site: Site) -> LowRankPart:
        return Tucker(site, self.rank, self.scale)
