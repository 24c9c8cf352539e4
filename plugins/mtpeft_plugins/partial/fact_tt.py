"""FacT-TT (AAAI 2023, arXiv 2212.03145): all weights of a ViT as one stack of d x d slices, in a tensor train.

Slice ``k`` of a weight in row-vector form changes by ``s U Sigma_k V^T``; ``U`` and ``V (d, r)`` are shared by all
layers and ``V`` starts at zero. ``qkv`` has three slices, ``fc1`` and ``fc2`` four each. Where stages differ in width
each width has its own ``U`` and ``V``; where a hidden layer is no multiple of ``d`` the last slice is cut.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtpeft.api import Count, Declarations, LowRankPart, Method, ModuleMap, Positive, Site, refuse_convolution, zeros

SLICES = "attn.q attn.k attn.v attn.proj mlp.fc1 mlp.fc2 | conv"
"""Every matrix of the blocks; where there is none, the convolutions, whose refusal says why."""


def slice_width(site: Site) -> int:
    """``d``: the smaller side of a linear layer's weight.

    Raises:
        NotApplicable: for a convolution.
    """
    refuse_convolution(site, "FacT cuts weight matrices into slices")
    return min(site.shape)


def slice_count(site: Site) -> int:
    return math.ceil(max(site.shape) / slice_width(site))


class Ends(nn.Module):
    """``U (d, r)`` xavier and ``V (d, r)`` zero, for all slices of one width."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.U = nn.Parameter(torch.empty(width, rank))
        self.V = zeros(width, rank)
        nn.init.xavier_uniform_(self.U)


def ends_by_width(sites: Sequence[Site], make: type[Ends], rank: int) -> ModuleMap:
    found = ModuleMap()
    for width in sorted({slice_width(site) for site in sites}):
        found[str(width)] = make(width, rank)
    return found


class Slices(LowRankPart):
    """Shared ends and the cores ``(k, r, r)`` of one weight's slices, which lie along its outputs or its inputs."""

    def __init__(self, site: Site, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.out, self.inputs = site.shape
        self.width = str(slice_width(site))

    @abstractmethod
    def cores(self) -> Tensor:
        """``(k, r, r)``."""

    def factors(self) -> tuple[Tensor, Tensor, float]:
        ends, cores = self.common[self.width], self.cores().mT  # column-vector form
        if self.out >= self.inputs:
            return ends.U.t(), (ends.V @ cores).flatten(0, 1)[: self.out], self.scale
        rows = (cores @ ends.U.t()).transpose(0, 1).flatten(1)  # (r, k d)
        return rows[:, : self.inputs], ends.V, self.scale


class TensorTrain(Slices):
    """The cores ``Sigma_k`` are free."""

    def __init__(self, site: Site, rank: int, scale: float) -> None:
        super().__init__(site, scale)
        self.Sigma = nn.Parameter(torch.empty(slice_count(site), rank, rank))
        for core in self.Sigma:
            nn.init.xavier_uniform_(core)

    def cores(self) -> Tensor:
        return self.Sigma


@dataclass
class FactTt(Method):
    """One tensor train for all linear layers of the blocks."""

    declares = Declarations(
        category="partial",
        mergeable=True,
        families="transformers and ConvNeXt",
        paper="FacT, AAAI 2023, arXiv 2212.03145",
    )

    at: str = SLICES
    rank: Count = 16
    scale: Positive = 1.0

    def common(self, sites: Sequence[Site]) -> nn.Module:
        return ends_by_width(sites, Ends, self.rank)

    def part(self, site: Site) -> LowRankPart:
        return TensorTrain(site, self.rank, self.scale)
