"""The adapter of Houlsby et al. (ICML 2019, arXiv 1902.00751): a bottleneck behind attention and one behind the MLP.

``y' = y + up(phi(down y))`` with ``y`` the output of attention or MLP, before it joins the stream. ``up`` starts at
zero (the paper draws both maps near it).
"""

from __future__ import annotations

from dataclasses import dataclass

from mtpeft.api import Activation, Count, Declarations, Fraction, Method, OutputPart, SequentialBottleneck, Site


@dataclass
class AdapterHoulsby(Method):
    """Two bottleneck adapters for each block."""

    declares = Declarations(
        category="addition",
        families="all; behind whole blocks where there are neither attentions nor MLPs",
        paper="Parameter-Efficient Transfer Learning for NLP, ICML 2019, arXiv 1902.00751",
    )

    at: str = "attn mlp | block"
    hidden: Count = 8
    activation: Activation = "gelu"
    dropout: Fraction = 0.0

    def part(self, site: Site) -> OutputPart:
        return SequentialBottleneck(site.width, self.hidden, self.activation, self.dropout)
