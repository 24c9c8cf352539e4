"""ARC (NeurIPS 2023, arXiv 2310.06234): projections that all layers share, recomposed by each with its own numbers.

In front of attention and of the MLP ``x' = x + U diag(c) U^T x + b``; ``U (d, r)`` is shared by the layers, ``c`` and
``b`` belong to one and start at zero (the released code starts the MLP's ``c`` at random). It is folded where ``x'`` is
read: ``W' = W (I + U diag(c) U^T)``, ``b' = b + W b_l``, which also serves attentions that timm runs without calling
``qkv``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtpeft.api import Count, Declarations, Method, ModuleMap, Site, WeightPart, refuse_convolution, zeros


def place(site: Site) -> tuple[str, str]:
    """Whose input changes (``blocks.3.attn``, ``blocks.3.mlp.fc1``), and which ``U`` serves it (``attn 768``).

    q, k and v read one input; any other layer reads its own.

    Raises:
        NotApplicable: for a convolution.
    """
    refuse_convolution(site, "ARC recomposes tokens")
    module, _, leaf = site.name.rpartition(".")
    reader = module if leaf in ("q", "k", "v", "qkv") else site.name
    return reader, f"{reader.rpartition('.')[2]} {site.in_features}"


class Coefficients(nn.Module):
    """``c (r,)`` and ``b (d,)`` of one place."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.c, self.b = zeros(rank), zeros(width)


class Recomposed(WeightPart):
    """Owns nothing: q, k and v of one attention read the same recomposed input."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.reader, self.basis = place(site)

    def forward(self, weight: Tensor) -> Tensor:
        u = self.common[self.basis]
        return weight + (weight @ u * self.common[self.reader].c) @ u.t()

    def bias(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        shift = weight @ self.common[self.reader].b
        return shift if bias is None else bias + shift


@dataclass
class Arc(Method):
    """Shared projections with a few coefficients for each layer."""

    declares = Declarations(
        category="partial",
        mergeable=True,
        families="transformers and ConvNeXt; merges where timm has a bias to fold the shift into",
        paper="ARC, NeurIPS 2023, arXiv 2310.06234",
    )

    at: str = "attn.q attn.k attn.v mlp.fc1 | conv"
    rank: Count = 50

    def common(self, sites: Sequence[Site]) -> nn.Module:
        found = ModuleMap()
        for site in sites:
            reader, basis = place(site)
            if basis not in found:
                found[basis] = nn.Parameter(torch.empty(site.in_features, self.rank))
                nn.init.xavier_uniform_(found[basis])
            if reader not in found:
                found[reader] = Coefficients(site.in_features, self.rank)
        return found

    def part(self, site: Site) -> WeightPart:
        return Recomposed(site)
