"""AdaptFormer (NeurIPS 2022, arXiv 2205.13535): a bottleneck beside each MLP.

``y' = MLP(x) + s up(drop(ReLU(down x)))`` with ``x`` the MLP's input, behind the norm, as in the paper's equation. With
``input = "raw"`` the bottleneck takes the stream before the norm instead, as in the released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from mtpeft.api import (
    Count,
    Declarations,
    Fraction,
    InputPart,
    Method,
    NotApplicable,
    ParallelBottleneck,
    Part,
    Positive,
    Site,
    refuse_reshaped,
)


class Stream(InputPart):
    """Keeps the stream before the norm for the bottleneck of its block."""

    def forward(self, x: Tensor) -> Tensor:
        self.scratch["stream"] = x
        return x


class RawBottleneck(ParallelBottleneck):
    """The same on the stream before the norm."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(self.scratch["stream"].view_as(x), y)


@dataclass
class Adaptformer(Method):
    """A bottleneck adapter parallel to each MLP; ``input`` is behind (``ln``) or before (``raw``) the block's norm."""

    declares = Declarations(
        category="addition", families="backbones with MLP blocks", paper="AdaptFormer, NeurIPS 2022, arXiv 2205.13535"
    )

    at: str = "mlp"
    hidden: Count = 64
    scale: Positive = 0.1
    dropout: Fraction = 0.1
    ln_in: bool = False
    input: Literal["ln", "raw"] = "ln"

    def __post_init__(self) -> None:
        if self.input == "raw" and self.at == "mlp":
            self.at = "middle mlp"

    def common(self, sites: Sequence[Site]) -> None:
        streams = {site.block for site in sites if "middle" in site.tags}
        without = next((site for site in sites if site.block not in streams), None)
        if self.input == "raw" and without is not None:
            raise NotApplicable(
                f"adaptformer finds no stream before the norm of {without.name}",
                hint='set input = "ln", or at = "middle mlp"',
            )

    def part(self, site: Site) -> Part:
        if self.input == "raw" and "middle" in site.tags:
            return Stream()
        refuse_reshaped(site)
        kind = RawBottleneck if self.input == "raw" else ParallelBottleneck
        return kind(site.width, self.hidden, self.scale, self.dropout, self.ln_in)
