"""Compacter (NeurIPS 2021, arXiv 2106.04647): adapters whose maps are sums of Kronecker products.

``y' = y + up(GELU(down y))`` behind attention and behind the MLP, each map ``W = sum_i A_i x (S_i T_i)`` with ``A_i
(n, n)`` shared by all layers and ``S_i (in / n, r)``, ``T_i (r, out / n)`` its own. All factors are drawn small, as
in the paper, so it starts near the identity and not at it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtpeft.api import Count, Declarations, Method, NotApplicable, OutputPart, Site, zeros


class KroneckerRules(nn.Module):
    """``A (n, n, n)``, normal with deviation .01."""

    def __init__(self, terms: int) -> None:
        super().__init__()
        self.A = nn.Parameter(0.01 * torch.randn(terms, terms, terms))


class KroneckerLinear(nn.Module):
    """``S (n, in / n, r)`` and ``T (n, r, out / n)``, Xavier-normal, and a bias."""

    def __init__(self, wide: int, narrow: int, terms: int, rank: int) -> None:
        super().__init__()
        self.S = nn.Parameter(torch.empty(terms, wide // terms, rank))
        self.T = nn.Parameter(torch.empty(terms, rank, narrow // terms))
        self.bias = zeros(narrow)
        for factor in (*self.S, *self.T):
            nn.init.xavier_normal_(factor)

    def weight(self, rule: Tensor) -> Tensor:
        """``(in, out)``."""
        blocks = torch.einsum("iab,icd->acbd", rule, self.S @ self.T)
        return blocks.flatten(2).flatten(0, 1)

    def forward(self, x: Tensor, rule: Tensor) -> Tensor:
        return x @ self.weight(rule) + self.bias


class KroneckerAdapter(OutputPart):
    def __init__(self, width: int, hidden: int, terms: int, rank: int) -> None:
        super().__init__()
        self.down = KroneckerLinear(width, hidden, terms, rank)
        self.up = KroneckerLinear(hidden, width, terms, rank)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        rule = self.common.A
        return y + self.up(F.gelu(self.down(y, rule)), rule)


@dataclass
class Compacter(Method):
    """Kronecker-product adapters behind attention and MLP; ``at = "mlp"`` is Compacter++."""

    declares = Declarations(
        category="addition",
        identity_at_init=False,
        families="all whose widths the number of terms divides",
        paper="Compacter, NeurIPS 2021, arXiv 2106.04647",
    )

    at: str = "attn mlp | block"
    hidden: Count = 24
    terms: Count = 4
    rank: Count = 1

    def __post_init__(self) -> None:
        fits = self.hidden % max(self.terms, 1) == 0
        self.require(fits, f"hidden is {self.hidden}", f"the bottleneck is a multiple of the {self.terms} terms")

    def common(self, sites: Sequence[Site]) -> nn.Module:
        return KroneckerRules(self.terms)

    def part(self, site: Site) -> OutputPart:
        if site.width % self.terms:
            raise NotApplicable(
                f"compacter splits the {site.width} channels of {site.name} into {self.terms} pieces",
                hint="set terms to a number that divides them",
            )
        return KroneckerAdapter(site.width, self.hidden, self.terms, self.rank)
