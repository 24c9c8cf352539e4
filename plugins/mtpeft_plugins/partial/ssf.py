"""SSF (NeurIPS 2022, arXiv 2210.08823): scale and shift the output of every operation, ``y = gamma op(x) + beta``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mtpeft.api import Declarations, Method, Site, WeightPart


class ScaleShift(WeightPart):
    """``gamma (out,)`` on the weight's rows and ``gamma b + beta`` for the bias."""

    def __init__(self, site: Site, spread: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(1 + spread * torch.randn(site.out_features))
        self.beta = nn.Parameter(spread * torch.randn(site.out_features))

    def forward(self, weight: Tensor) -> Tensor:
        return self.gamma.view(-1, *[1] * (weight.ndim - 1)) * weight

    def bias(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self.beta if bias is None else self.gamma * bias + self.beta

    def on_output(self, y: Tensor) -> Tensor:
        return self.gamma * y + self.beta


@dataclass
class Ssf(Method):
    """Scales and shifts the features behind every linear layer, norm and convolution.

    The paper starts at N(1, .02) and N(0, .02), which is no identity; ``init = "identity"`` starts at ones and zeros.
    """

    at: str = "linear norm conv grouped-conv"
    init: Literal["normal", "identity"] = "normal"

    @property
    def declares(self) -> Declarations:
        return Declarations(
            category="partial",
            mergeable=True,
            identity_at_init=self.init == "identity",
            families="all; merges where timm has a bias to fold the shift into",
            paper="SSF, NeurIPS 2022, arXiv 2210.08823",
        )

    def part(self, site: Site) -> WeightPart:
        return ScaleShift(site, 0.02 if self.init == "normal" else 0.0)
