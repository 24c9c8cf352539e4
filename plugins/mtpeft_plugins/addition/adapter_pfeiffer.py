"""The adapter of Pfeiffer et al. (AdapterFusion, EACL 2021, arXiv 2005.00247): one bottleneck behind each MLP.

``y' = y + up(phi(down y))`` with ``y`` the MLP's output, before it joins the stream. ``up`` starts at zero, so that
the adapter starts as the identity (the paper starts near it). Backbones without MLPs take it behind each block.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mtpeft.api import Method, OutputPart, Site
from mtpeft_plugins.addition._bottleneck import Activation, Bottleneck


class Sequential(OutputPart):
    """``y + up(phi(down y))``."""

    def __init__(self, width: int, hidden: int, activation: Activation, dropout: float) -> None:
        super().__init__()
        self.bottleneck = Bottleneck(width, hidden, activation, dropout)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.bottleneck(y)


@dataclass
class AdapterPfeiffer(Method):
    """A bottleneck adapter behind each MLP."""

    paper = "AdapterFusion, EACL 2021, arXiv 2005.00247"
    families = "all; behind whole blocks where there are no MLPs"

    at: str = "mlp | block"
    hidden: int = 8
    activation: Activation = "gelu"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        self.check(self.hidden >= 1, f"hidden is {self.hidden}", "a bottleneck is at least 1 wide")
        self.check(0 <= self.dropout < 1, f"dropout is {self.dropout}", "dropout is at least 0 and below 1")

    def part(self, site: Site) -> OutputPart:
        return Sequential(site.width, self.hidden, self.activation, self.dropout)
