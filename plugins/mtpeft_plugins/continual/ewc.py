"""EWC (PNAS 2017, arXiv 1612.00796): what mattered to earlier tasks moves little.

``L + strength / 2 * sum_i F_i (theta_i - theta*_i)^2``, with the diagonal Fisher information ``F`` of the trained
numbers, the mean over samples of the squared gradient of their loss. A method without parts: ``lora+ewc``. New rows of
a growing head are free.

Where ours differs: the paper keeps a penalty for each earlier task, whose number grows; here their Fishers are summed,
the older ones times ``decay``, and the anchor is the last stage's end (online EWC, ICML 2018, arXiv 1805.06370). The
gradients are those of the given labels, not of labels drawn from the model, so that any type of task is served.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from mtpeft.api import Context, Declarations, NonNegative, Share
from mtpeft_plugins.continual._anchors import Anchored, AnchoringMethod, mean_over_samples


@dataclass
class Ewc(AnchoringMethod):
    """Draws trained numbers back to where earlier stages left them, by their Fisher information."""

    declares = Declarations(
        category="continual", mergeable=True, families="all", paper="EWC, PNAS 2017, arXiv 1612.00796"
    )

    strength: NonNegative = 400.0
    decay: Share = 1.0

    def routine(self) -> FisherAnchors:
        return FisherAnchors(self)


class FisherAnchors(Anchored[Ewc]):
    """Weighs by squared gradients of the loss."""

    scale = 0.5

    def weigh(self, context: Context, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        return mean_over_samples(context, parameters, context.loss, Tensor.square, self.method.every)

    def carried(self, importance: Tensor) -> Tensor:
        return self.method.decay * importance
