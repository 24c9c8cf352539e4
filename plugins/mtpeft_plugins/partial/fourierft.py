"""FourierFT (ICML 2024, arXiv 2405.03003): a few trained coefficients of the update's Fourier spectrum.

``W' = W + s Re(IDFT2(F))``, ``F`` zero but for ``n`` entries. Their places are drawn from ``seed``, the same in all
layers of one size, and are not saved. The paper starts the coefficients at N(0, 1), which is no identity; zeros are the
default here, and ``init = "normal"`` is the paper's. A weight with fewer than ``n`` entries takes as many as it has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mtpeft.api import Count, Declarations, FixedSeed, Method, Positive, Site, WeightPart, fixed_uniform


class Places(nn.Module):
    """Flat indices of the trained entries, for each size of a weight."""

    def __init__(self, sites: Sequence[Site], count: int, seed: int) -> None:
        super().__init__()
        for size in {math.prod(site.matrix_shape) for site in sites}:
            places = fixed_uniform(seed, size).argsort(stable=True)[:count]
            self.register_buffer(f"of_{size}", places, persistent=False)


class Spectrum(WeightPart):
    """``coefficients (n,)`` of an ``(out, in)`` spectrum."""

    def __init__(self, site: Site, count: int, scale: float, spread: float) -> None:
        super().__init__()
        self.scale = scale
        self.coefficients = nn.Parameter(spread * torch.randn(min(count, site.weight.numel())))

    def forward(self, weight: Tensor) -> Tensor:
        places = self.common.get_buffer(f"of_{weight.numel()}")
        flat = self.coefficients.new_zeros(weight.numel()).index_put((places,), self.coefficients)
        return weight + self.scale * torch.fft.ifft2(flat.view_as(weight.flatten(1))).real.view_as(weight)


@dataclass
class Fourierft(Method):
    """``coefficients`` numbers for each chosen weight, whatever its size."""

    at: str = "attn.q attn.v | mlp.fc1 mlp.fc2 | conv"
    coefficients: Count = 1000
    scale: Positive = 150.0
    init: Literal["zero", "normal"] = "zero"
    seed: FixedSeed = 0

    @property
    def declares(self) -> Declarations:
        return Declarations(
            category="partial",
            mergeable=True,
            identity_at_init=self.init == "zero",
            families="all",
            learning_rate=5e-2,
            paper="FourierFT, ICML 2024, arXiv 2405.03003",
        )

    def common(self, sites: Sequence[Site]) -> nn.Module:
        return Places(sites, self.coefficients, self.seed)

    def part(self, site: Site) -> WeightPart:
        return Spectrum(site, self.coefficients, self.scale, 1.0 if self.init == "normal" else 0.0)
