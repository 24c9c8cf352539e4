"""AttnScale (AAAI 2024, arXiv 2304.01917): learned scales of the attention scores, with the norms tuned beside them.

``softmax(a_h q_h k_h^T / sqrt(d_h))`` with one ``a_h`` for each head, ones at the start; it multiplies head h's rows of
the query projection, so it merges. The paper learns scaling parameters of each attention matrix; this form is ours,
written without the paper's equation at hand. A scale for each entry would tie it to one input size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtpeft.api import Declarations, Method, NotApplicable, Replacement, Site, WeightPart


class HeadScale(WeightPart):
    """``a (heads,)`` on the query rows and their bias, head by head."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(heads))

    def forward(self, weight: Tensor) -> Tensor:
        return self._rows(len(weight))[:, None] * weight

    def bias(self, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        return None if bias is None else self._rows(len(bias)) * bias

    def on_output(self, y: Tensor) -> Tensor:
        return self._rows(y.shape[-1]) * y

    def _rows(self, count: int) -> Tensor:
        return self.scale.repeat_interleave(count // len(self.scale))


@dataclass
class Attnscale(Method):
    """Scales each head's attention scores and, unless ``norms = false``, trains the norms."""

    declares = Declarations(
        category="partial",
        mergeable=True,
        families="transformers whose queries are not normalised behind their projection",
        learning_rate=3e-3,
        paper="Strong Baselines for Parameter-Efficient Few-Shot Fine-Tuning, AAAI 2024, arXiv 2304.01917",
    )

    at: str = "attn.q norm-parameter"
    norms: bool = True

    def common(self, sites: Sequence[Site]) -> None:
        if all("norm-parameter" in site.tags for site in sites):
            raise NotApplicable(f"attnscale scales queries, and {sites[0].model.family} has no projection of them")

    def part(self, site: Site) -> WeightPart | None:
        if "norm-parameter" in site.tags:
            return Replacement(site) if self.norms else None
        return HeadScale(_heads(site))


def _heads(site: Site) -> int:
    """The number of heads of the attention around a query projection.

    Raises:
        NotApplicable: for any other site, and where the queries are normalised.
    """
    if not site.name.endswith(".q"):
        raise NotApplicable(
            f"attnscale scales queries, and {site.name} is no projection of them",
            hint='leave at = "attn.q norm-parameter" as it is, and choose blocks with blocks',
        )
    attention: Any = site.model.modules[site.path.rpartition(".")[0]]
    normed = getattr(attention, "q_norm", None)
    if hasattr(attention, "logit_scale") or not isinstance(normed, nn.Identity | None):
        raise NotApplicable(
            f"attnscale scales queries, and {site.model.family} normalises them behind their projection"
        )
    return getattr(attention, "num_heads", 0) or attention.heads
