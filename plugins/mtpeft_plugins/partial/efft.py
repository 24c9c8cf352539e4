"""EFFT (arXiv 2311.06749): one low-rank frame for attention weights and one for MLP weights, shared by all layers.

A weight ``(out, in)`` changes by ``s E_out S F_in^T``: its ends are the group's ``U`` (the narrower side) and ``V``
(the wider; the outputs where both are equal), its core ``S (r, r)`` is the same in every layer. ``V`` starts at zero.
Each width of a backbone with stages has its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtpeft.api import Count, Declarations, LowRankPart, Method, ModuleMap, Positive, Site, refuse_convolution, zeros
from mtpeft_plugins.partial.fact_tt import SLICES


def role(site: Site) -> str:
    """The last two words of its name: ``attn.q``."""
    return ".".join(site.name.split(".")[-2:])


def group_of(site: Site) -> str:
    """Weights with one ``U`` and ``V``: of one kind of module, and one shape up to transposition.

    Raises:
        NotApplicable: for a convolution.
    """
    refuse_convolution(site, "EFFT shares matrices")
    return f"{role(site).split('.')[0]} {min(site.shape)} {max(site.shape)}"


class Frame(nn.Module):
    """``U (narrow, r)`` xavier, ``V (wide, r)`` zero, and the core of each role, xavier."""

    def __init__(self, narrow: int, wide: int, rank: int) -> None:
        super().__init__()
        self.U = nn.Parameter(torch.empty(narrow, rank))
        self.V = zeros(wide, rank)
        self.cores = ModuleMap()
        nn.init.xavier_uniform_(self.U)


class Framed(LowRankPart):
    """Owns nothing: its group's frame, and its role's core."""

    def __init__(self, site: Site, scale: float) -> None:
        super().__init__()
        self.scale, self.group, self.role = scale, group_of(site), role(site)
        self.narrows = site.out_features < site.in_features

    def factors(self) -> tuple[Tensor, Tensor, float]:
        frame = self.common[self.group]
        core = frame.cores[self.role]
        if self.narrows:
            return core @ frame.V.t(), frame.U, self.scale
        return core @ frame.U.t(), frame.V, self.scale


@dataclass
class Efft(Method):
    """Attention weights and MLP weights, each group in one frame with one core per kind of weight."""

    declares = Declarations(
        category="partial", mergeable=True, families="transformers and ConvNeXt", paper="EFFT, arXiv 2311.06749"
    )

    at: str = SLICES
    rank: Count = 16
    scale: Positive = 1.0

    def common(self, sites: Sequence[Site]) -> nn.Module:
        frames = ModuleMap()
        for site in sites:
            group = group_of(site)
            if group not in frames:
                frames[group] = Frame(min(site.shape), max(site.shape), self.rank)
            cores = frames[group].cores
            if role(site) not in cores:
                cores[role(site)] = nn.Parameter(torch.empty(self.rank, self.rank))
                nn.init.xavier_uniform_(cores[role(site)])
        return frames

    def part(self, site: Site) -> LowRankPart:
        return Framed(site, self.scale)
