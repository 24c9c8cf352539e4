"""LN-tune (AAAI 2024, arXiv 2304.01917): the norms' weights and biases alone."""

from __future__ import annotations

from dataclasses import dataclass

from mtpeft.api import Declarations, Method, Replacement, Site, WeightPart


@dataclass
class LnTune(Method):
    """Trains the gains and shifts of every norm; with ``bias = false`` the gains alone.

    The norms of convolutional networks (BatchNorm) keep their running statistics.
    """

    declares = Declarations(
        category="partial",
        mergeable=True,
        families="all",
        paper="Strong Baselines for Parameter-Efficient Few-Shot Fine-Tuning, AAAI 2024, arXiv 2304.01917",
    )

    at: str = "norm-parameter"
    bias: bool = True

    def part(self, site: Site) -> WeightPart | None:
        return Replacement(site) if self.bias or "bias" not in site.tags else None
