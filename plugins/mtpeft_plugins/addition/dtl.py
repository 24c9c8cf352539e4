"""DTL, disentangled transfer learning (AAAI 2024, arXiv 2312.07856): a compact side stream, fed back in late blocks.

``h_{l+1} = h_l + B_l A_l x_l`` with ``x_l`` the block's input; behind the second half of the blocks ``x_{l+1} =
block(x_l) + theta(h_{l+1})`` with ``theta(z) = z sigmoid(beta z)``. ``A`` is Kaiming-uniform, ``B`` zero, so
``theta`` adds nothing at the start. The backbone needs no gradient before the first block that is fed back. The
released model also pools the patches instead of the class token; here the backbone's own pooling stays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtpeft.api import Count, Declarations, Method, NotApplicable, OutputPart, Positive, Site, Whole, zeros


class SideStream(OutputPart):
    """``A (r, d)`` and ``B (d, r)``.

    Args:
        feeds: adds the stream to the block's output.
    """

    def __init__(self, width: int, rank: int, beta: float, feeds: bool) -> None:
        super().__init__()
        self.A, self.B = nn.Parameter(torch.empty(rank, width)), zeros(width, rank)
        self.beta, self.feeds = beta, feeds
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        stream = F.linear(F.linear(x, self.A), self.B)
        if "stream" in self.scratch:
            stream = self.scratch["stream"] + stream
        self.scratch["stream"] = stream
        return y + self.fed(stream * torch.sigmoid(self.beta * stream)) if self.feeds else y

    def fed(self, theta: Tensor) -> Tensor:
        """What the block's output gets."""
        return theta


@dataclass
class Dtl(Method):
    """A low-rank side stream over all blocks, added to the outputs of the late ones.

    ``start`` is the first block that is fed back; by default the middle one.
    """

    declares = Declarations(
        category="addition",
        families="ViT-like backbones: one sequence of tokens through all blocks",
        paper="DTL, AAAI 2024, arXiv 2312.07856",
    )

    at: str = "block"
    rank: Count = 2
    beta: Positive = 100.0
    start: Whole | None = None

    stream = SideStream

    def common(self, sites: Sequence[Site]) -> nn.Module | None:
        model = sites[0].model
        if not model.tokens:
            raise NotApplicable(
                f"dtl carries one stream along all blocks, and {model.family} changes its grid between them"
            )
        start = self.first_fed(sites[0])
        last = max((site.block for site in sites if site.block is not None), default=-1)
        if start > last:
            raise NotApplicable(
                f"dtl is fed back from block {start} on, and its stream ends at block {last}", hint="set start lower"
            )
        return None

    def part(self, site: Site) -> OutputPart:
        feeds = site.block is not None and site.block >= self.first_fed(site)
        return self.stream(site.width, self.rank, self.beta, feeds)

    def first_fed(self, site: Site) -> int:
        """Index of the first block that the stream is fed back to."""
        return len(site.model.blocks) // 2 if self.start is None else self.start
