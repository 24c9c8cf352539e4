"""DER++ (NeurIPS 2020, arXiv 2004.07211): replay of labels, and of the logits that samples had when they were kept.

``L(batch) + alpha * E ||z - h(x')||^2 + weight * L(x'', y'')`` with ``(x', z)`` and ``(x'', y'')`` drawn apart from one
reservoir; ``weight`` is the paper's beta. Of a head that has grown since, the outputs that the logits stand for are
compared. The square is the mean over logits, as in the released code, for which alpha is published.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtpeft.api import Context, Count, Declarations, NonNegative, TaskBatch
from mtpeft_plugins.continual.er import Er, Replay


@dataclass
class DerPp(Er):
    """Experience replay that also holds outputs to what they were."""

    declares = Declarations(
        category="continual",
        mergeable=True,
        families="all",
        accepts=("cls",),
        paper="Dark Experience for General Continual Learning, NeurIPS 2020, arXiv 2004.07211",
    )

    batch: Count = 32
    weight: NonNegative = 0.5
    alpha: NonNegative = 0.1

    def routine(self) -> Replay[Any]:
        return DarkReplay(self)


class DarkReplay(Replay[DerPp]):
    """Replay that keeps logits beside samples."""

    def extra(self, batch: TaskBatch, row: int) -> dict[str, Tensor]:
        return {"logits": batch.outputs[row].detach().float()}

    def penalty(self, context: Context) -> Tensor | None:
        distance = self.distance(context) if self.method.alpha else None
        replayed = super().penalty(context)
        terms = [term for term in (replayed, distance) if term is not None]
        return torch.stack(terms).sum() if terms else None

    def distance(self, context: Context) -> Tensor | None:
        """``alpha`` times the mean squared distance of logits from those that were kept."""
        terms, count = [], 0
        for keys, images, _ in self.loaded(context, self.drawn(context, "logits"), "logits"):
            kept = torch.stack([self.memory.extra(key)["logits"] for key in keys]).to(images.device)
            outputs = context.host.predict(images, keys[0][0])[:, : kept.shape[1]]
            terms.append((outputs.float() - kept).square().mean(1).sum())
            count += len(keys)
        return self.method.alpha * torch.stack(terms).sum() / count if terms else None
