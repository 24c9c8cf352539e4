"""AdapterBias (NAACL 2022, arXiv 2205.00305): a shift behind each MLP, weighted token by token.

``y' = y + alpha(y) v`` with ``y`` the MLP's output, ``v (d,)`` and ``alpha: d -> 1`` linear; ``v`` is zero at the
start.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from mtpeft.api import Method, OutputPart, Site, zeros


class TokenShift(OutputPart):
    """The direction ``v`` and the linear ``alpha`` that says how far each token goes along it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.direction, self.weight = zeros(width), nn.Linear(width, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.weight(y) * self.direction


@dataclass
class Adapterbias(Method):
    """Shifts every token along one learned direction, by an amount that depends on the token."""

    paper = "AdapterBias, NAACL 2022, arXiv 2205.00305"
    families = "backbones with MLP blocks"

    at: str = "mlp"

    def part(self, site: Site) -> OutputPart:
        return TokenShift(site.width)
