"""Bi-Adapter (ICCV 2023, arXiv 2307.16867): adapters whose weights take one bit each.

``y' = y + s up(drop(ReLU(down x)))`` beside each MLP, without biases. A weight is ``mean + deviation * q`` with ``q
= +-.674``, the quartiles of the normal distribution, by the sign of the latent weight's distance from the mean.
Gradients pass the quantiser unchanged. ``up`` starts small and not at zero, because a bit has no zero. ``x`` is the
MLP's input behind the norm (the released code takes the stream before it). What trains, and what a run keeps so
that it can go on, are the latent weights; `bits` gives what inference needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtpeft.api import Count, Declarations, Fraction, Method, OutputPart, Positive, Site, refuse_reshaped

QUARTILE = NormalDist().inv_cdf(0.75)


class OneBitLinear(nn.Module):
    """A linear map whose weight ``(out, in)`` is quantised to two values."""

    def __init__(self, wide: int, narrow: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(narrow, wide))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def bits(self) -> Tensor:
        """``(out, in)``, true for the upper value."""
        return self.weight > self.weight.mean()

    def quantised(self) -> Tensor:
        mean, deviation = self.weight.mean(), self.weight.std()
        normal = (self.weight - mean) / (deviation + 1e-5)
        levels = (2 * self.bits().to(normal.dtype) - 1) * QUARTILE
        return (normal + (levels - normal).detach()) * deviation + mean

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.quantised())


class OneBitAdapter(OutputPart):
    def __init__(self, width: int, hidden: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.down, self.up = OneBitLinear(width, hidden), OneBitLinear(hidden, width)
        self.scale, self.dropout = scale, dropout
        nn.init.trunc_normal_(self.up.weight, std=0.001, a=-0.002, b=0.002)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        hidden = F.dropout(F.relu(self.down(x)), self.dropout, self.training)
        return y + self.scale * self.up(hidden)


@dataclass
class BiAdapter(Method):
    """One-bit bottleneck adapters beside each MLP."""

    declares = Declarations(
        category="addition",
        identity_at_init=False,
        families="backbones with MLP blocks",
        paper="Revisiting the Parameter Efficiency of Adapters from Precision Redundancy, ICCV 2023, arXiv 2307.16867",
    )

    at: str = "mlp"
    hidden: Count = 32
    scale: Positive = 1.0
    dropout: Fraction = 0.1

    def part(self, site: Site) -> OutputPart:
        refuse_reshaped(site)
        return OneBitAdapter(site.width, self.hidden, self.scale, self.dropout)
