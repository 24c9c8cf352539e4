"""The adapter of Pfeiffer et al. (AdapterFusion, EACL 2021, arXiv 2005.00247): one bottleneck behind each MLP.

``y' = y + up(phi(down y))`` with ``y`` the MLP's output, before it joins the stream. ``up`` starts at zero, so that
the adapter starts as the identity (the paper starts near it). Backbones without MLPs take it behind each block.
"""

from __future__ import annotations

from dataclasses import dataclass

from mtpeft.api import Activation, Count, Declarations, Fraction, Method, OutputPart, SequentialBottleneck, Site


@dataclass
class AdapterPfeiffer(Method):
    """A bottleneck adapter behind each MLP."""

    declares = Declarations(
        category="addition",
        families="all; behind whole blocks where there are no MLPs",
        paper="AdapterFusion, EACL 2021, arXiv 2005.00247",
    )

    at: str = "mlp | block"
    hidden: Count = 8
    activation: Activation = "gelu"
    dropout: Fraction = 0.0

    def part(self, site: Site) -> OutputPart:
        return SequentialBottleneck(site.width, self.hidden, self.activation, self.dropout)
