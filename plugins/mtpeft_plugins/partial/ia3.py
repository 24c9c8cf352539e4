"""(IA)^3 (NeurIPS 2022, arXiv 2205.05638): learned gains on keys, values and the MLP's hidden units.

``softmax(q (l_k k)^T) (l_v v)`` and ``W_2 (l_ff act(W_1 x))``, all ``l`` ones at the start. As functions of the
weights: ``diag(l) W`` and ``l b`` for the k and v rows (of a fused ``qkv`` these rows only, so q is left alone), ``W_2
diag(l_ff)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtpeft.api import Declarations, Method, Site, WeightPart


class RowGain(WeightPart):
    """``l (out,)`` on the rows of a weight and on its bias."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(site.out_features))

    def forward(self, weight: Tensor) -> Tensor:
        return self.gain.view(-1, *[1] * (weight.ndim - 1)) * weight

    def bias(self, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        return None if bias is None else self.gain * bias

    def on_output(self, y: Tensor) -> Tensor:
        return self.gain * y


class ColumnGain(WeightPart):
    """``l (in,)`` on the inputs of a weight."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(site.in_features))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.gain.view(1, -1, *[1] * (weight.ndim - 2))

    def on_input(self, x: Tensor) -> Tensor:
        return self.gain * x


@dataclass
class Ia3(Method):
    """Scales keys, values and the MLP's hidden units by learned vectors."""

    declares = Declarations(
        category="partial",
        mergeable=True,
        families="transformers; ConvNeXt and the like by their MLPs alone",
        learning_rate=3e-3,
        paper="(IA)^3 in Few-Shot PEFT is Better and Cheaper than In-Context Learning, NeurIPS 2022, arXiv 2205.05638",
    )

    at: str = "attn.k attn.v mlp.fc2"

    def part(self, site: Site) -> WeightPart:
        return ColumnGain(site) if site.name.endswith("fc2") else RowGain(site)
