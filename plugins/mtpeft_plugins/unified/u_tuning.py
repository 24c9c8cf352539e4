"""U-Tuning (arXiv 2303.00690): a frozen operation with a tuner beside it, ``x' = OP(x) + U(x)``.

``OP`` is the attention, the MLP or the block (``at``); ``U`` one of three, each zero at the start:

- ``adapter``: ``s up(ReLU(down x))``,
- ``prefix``: ``s softmax(x P_K^T / sqrt(d)) P_V``, attention over learned keys and values,
- ``prompt``: ``s g softmax(x P^T / sqrt(d)) P``, the same with one ``P`` for both and a gain ``g (d,)``.

The paper's prefix and prompt tuners ask with the frozen query projection; here the operation's input asks itself, so
that a tuner needs nothing of the inside of what it stands beside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mtpeft.api import (
    Count,
    Declarations,
    Method,
    OutputPart,
    ParallelBottleneck,
    Positive,
    Site,
    refuse_reshaped,
    zeros,
)


def drawn(tokens: int, width: int) -> nn.Parameter:
    """Xavier-uniform ``(tokens, width)``."""
    return nn.Parameter(nn.init.xavier_uniform_(torch.empty(tokens, width)))


def attend(x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of tokens ``x (..., d)`` over keys and values ``(p, d)``."""
    return (x @ keys.t() / x.shape[-1] ** 0.5).softmax(-1) @ values


class PrefixTuner(OutputPart):
    """Learned keys, and values that start at zero."""

    def __init__(self, width: int, tokens: int, scale: float) -> None:
        super().__init__()
        self.keys, self.values, self.scale = drawn(tokens, width), zeros(tokens, width), scale

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.scale * attend(x, self.keys, self.values)


class PromptTuner(OutputPart):
    """Prompts that are keys and values, and a gain that starts at zero (zero prompts would stay equal for ever)."""

    def __init__(self, width: int, tokens: int, scale: float) -> None:
        super().__init__()
        self.prompts, self.gain, self.scale = drawn(tokens, width), zeros(width), scale

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.scale * self.gain * attend(x, self.prompts, self.prompts)


@dataclass
class UTuning(Method):
    """A tuner of a chosen form in parallel to attention, MLP or block."""

    declares = Declarations(
        category="unified",
        families="backbones whose attentions and MLPs keep the shape of their input",
        paper="Rethinking Efficient Tuning Methods from a Unified Perspective, arXiv 2303.00690",
    )

    at: str = "attn mlp"
    tuner: Literal["adapter", "prefix", "prompt"] = "adapter"
    hidden: Count = 16
    tokens: Count = 10
    scale: Positive = 1.0

    def __post_init__(self) -> None:
        fits = self.tuner != "prefix" or self.tokens > 1
        self.require(fits, f"tokens is {self.tokens}", "a prefix tuner chooses among at least 2 keys")

    def part(self, site: Site) -> OutputPart:
        refuse_reshaped(site)
        if self.tuner == "adapter":
            return ParallelBottleneck(site.width, self.hidden, self.scale, 0.0, norm=False)
        tuner = PrefixTuner if self.tuner == "prefix" else PromptTuner
        return tuner(site.width, self.tokens, self.scale)
