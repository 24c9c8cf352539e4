"""KAdaptation (AAAI 2023, arXiv 2203.16329): a sum of Kronecker products whose small factors all layers share.

``W' = W + s sum_i A_i x (u_i v_i^T)`` and ``b' = b + c``, with ``n`` terms. ``A_i = a_i e_i^T (n, n)`` is shared by the
layers, one set for each of q and v; ``u``, ``v`` and ``c`` belong to a layer, ``c`` to its q and v together. ``u`` is
random and ``v`` zero: the released code starts both at zero, where no gradient ever flows, and builds the update of v
from q's factors. Where ``n`` does not divide both sides the largest number that does is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtpeft.api import Count, Declarations, Method, ModuleMap, Positive, Site, WeightPart, zeros


def terms(site: Site, most: int) -> int:
    """The largest number up to ``most`` that divides both sides of the weight."""
    sides = math.gcd(*site.matrix_shape)
    return next(n for n in range(min(most, sides), 0, -1) if sides % n == 0)


def rule_name(site: Site, count: int) -> str:
    """What shares the ``A_i``: weights with the same last name (``q``) and number of terms."""
    return f"rule {site.name.rpartition('.')[2]} {count}"


def shift_name(site: Site) -> str:
    """What shares ``c``: weights of one module with as many outputs."""
    return f"shift {site.name.rpartition('.')[0]} {site.out_features}"


class RankOneRules(nn.Module):
    """``a`` and ``e (n, n)``, their rows the ``a_i`` and ``e_i``."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(count, count) / math.sqrt(count))
        self.e = nn.Parameter(torch.randn(count, count) / math.sqrt(count))


class KroneckerSum(WeightPart):
    """``u (n, out / n)`` xavier and ``v (n, in / n)`` zero."""

    def __init__(self, site: Site, count: int, scale: float) -> None:
        super().__init__()
        out, inputs = site.matrix_shape
        self.scale, self.rule, self.shift = scale, rule_name(site, count), shift_name(site)
        self.u = nn.Parameter(torch.empty(count, out // count))
        self.v = zeros(count, inputs // count)
        nn.init.xavier_uniform_(self.u)

    def forward(self, weight: Tensor) -> Tensor:
        rule = self.common[self.rule]
        left = torch.einsum("ip,ir->ipr", rule.a, self.u).flatten(1)  # (n, out)
        right = torch.einsum("iq,is->iqs", rule.e, self.v).flatten(1)  # (n, in)
        return weight + self.scale * (left.t() @ right).view_as(weight)

    def bias(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        shift = self.common[self.shift]
        return shift if bias is None else bias + shift


@dataclass
class Kadaptation(Method):
    """Kronecker sums with shared rank-one factors."""

    declares = Declarations(
        category="partial",
        mergeable=True,
        families="all; merges where timm has a bias to fold the shift into",
        paper="KAdaptation, AAAI 2023, arXiv 2203.16329",
    )

    at: str = "attn.q attn.v | mlp.fc1 mlp.fc2 | conv"
    terms: Count = 32
    scale: Positive = 1.0

    def common(self, sites: Sequence[Site]) -> nn.Module:
        found = ModuleMap()
        for site in sites:
            count = terms(site, self.terms)
            if rule_name(site, count) not in found:
                found[rule_name(site, count)] = RankOneRules(count)
            if shift_name(site) not in found:
                found[shift_name(site)] = zeros(site.out_features)
        return found

    def part(self, site: Site) -> WeightPart:
        return KroneckerSum(site, terms(site, self.terms), self.scale)
