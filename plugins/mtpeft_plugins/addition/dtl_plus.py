"""DTL+ (AAAI 2024, arXiv 2312.07856): DTL whose side stream passes a depthwise convolution before it is fed back.

``x_{l+1} = block(x_l) + conv(theta(h_{l+1}))`` with one ``k x k`` depthwise convolution, shared by all blocks, over
the token grid; tokens before the grid pass by it. The released code knows 14 x 14 tokens only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtpeft.api import Count, Site, over_grid
from mtpeft_plugins.addition.dtl import Dtl, SideStream


class ConvolvedStream(SideStream):
    def fed(self, theta: Tensor) -> Tensor:
        """``theta (B, P + H W, d)`` with its grid convolved."""
        before, _, _ = self.layout.grid(theta.shape[1])
        grid = over_grid(self.convolved, theta[:, before:], self.layout)
        return torch.cat([theta[:, :before], grid], 1) if before else grid

    def convolved(self, image: Tensor) -> Tensor:
        """``(B, d, H, W)`` to the same, also for even kernels."""
        low, high = (self.common.kernel_size[0] - 1) // 2, self.common.kernel_size[0] // 2
        return self.common(F.pad(image, (low, high, low, high)))


@dataclass
class DtlPlus(Dtl):
    """DTL with a shared depthwise convolution on the side stream."""

    kernel: Count = 3

    stream = ConvolvedStream

    def common(self, sites: Sequence[Site]) -> nn.Module:
        super().common(sites)
        width = sites[0].width
        return nn.Conv2d(width, width, self.kernel, groups=width, bias=False)
