"""APER, first called ADAM (IJCV 2024, arXiv 2303.07338): adapt once, then prototypes in two feature spaces.

An adapter ``s up(ReLU(down x))`` beside each MLP trains in the first stage, with a linear classifier that is dropped
afterwards; then all is frozen. ``y = argmax_c cos([phi(x), phi_A(x)], mu_c)`` with the plain and the adapted features
joined and ``mu_c`` the class's mean of them: two passes for each image. The paper's default tuning is SGD with rate
0.01 to 0.05 for 20 epochs. The released code feeds the adapter from before the norm; here its input is the MLP's, as
in the equation. Logits are cosines times ``scale``, which the paper does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtpeft.api import (
    SHARED,
    Count,
    Declarations,
    FeaturesInfo,
    Fraction,
    ParallelBottleneck,
    Part,
    Passes,
    Positive,
    Site,
    refuse_reshaped,
)
from mtpeft_plugins.continual._closed_form import FirstStageOnly, SolvedMethod
from mtpeft_plugins.continual.simplecil import Prototypes


@dataclass
class Aper(SolvedMethod):
    """Shared adapters trained in the first stage, then cosine prototypes of plain and adapted features."""

    declares = Declarations(
        category="continual",
        inference_passes=2,
        accepts=("cls",),
        families="backbones with MLP blocks",
        paper="APER, IJCV 2024, arXiv 2303.07338",
    )

    at: str = "mlp"
    hidden: Count = 64
    adapter_scale: Positive = 0.1
    dropout: Fraction = 0.1
    scale: Positive = 16.0

    def owners(self, task: str | None, seen: Sequence[str]) -> tuple[str, ...]:
        return (SHARED,)

    def part(self, site: Site) -> Part:
        refuse_reshaped(site)
        return ParallelBottleneck(site.width, self.hidden, self.adapter_scale, self.dropout, norm=False)

    def classifier(self, info: FeaturesInfo, classes: Sequence[str]) -> Prototypes:
        return Prototypes(info, classes, 2 * info.pooled, self.scale)

    def pooled(self, host: Passes, images: Tensor, task: str | None, head: Any) -> Tensor:
        return torch.cat([host.plain(images).pooled, host(images, task).pooled], 1)

    def routine(self) -> FirstStageOnly:
        return FirstStageOnly(self)
