"""DiffFit (ICCV 2023, arXiv 2304.06648): biases, norms, and a gain for each residual branch.

``x' = x + gamma f(x)`` for attention and MLP, ``gamma (d,)`` starting at ones. The gain sits on the branch's last
linear layer, behind which only element-wise gains (LayerScale) follow, so it folds into that layer: ``diag(gamma) W``,
``gamma b``. Where a norm closes the branch (SwinV2), ``gamma`` lies before it; the norm's own gain, which trains too,
is then the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtpeft.api import Declarations, Method, NotApplicable, OutputPart, Part, Replacement, Site


class Gain(OutputPart):
    """``gamma y`` for each channel, ones at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.gamma * y

    def affine(self) -> tuple[Tensor, Tensor]:
        return torch.diag(self.gamma), torch.zeros_like(self.gamma)


@dataclass
class Difffit(Method):
    """Trains biases and norms, and scales the attention and MLP branches by learned gains."""

    declares = Declarations(
        category="partial",
        mergeable=True,
        families="backbones with attention or MLP branches",
        paper="DiffFit, ICCV 2023, arXiv 2304.06648",
    )

    at: str = "bias norm-parameter attn.proj mlp.fc2"

    def common(self, sites: Sequence[Site]) -> None:
        if not any("linear" in site.tags for site in sites):
            raise NotApplicable(
                f"difffit scales attention and MLP branches, and {sites[0].model.family} has none",
                hint="bitfit and ln-tune train the rest of it",
            )

    def part(self, site: Site) -> Part:
        return Replacement(site) if "parameter" in site.tags else Gain(site.out_features)
