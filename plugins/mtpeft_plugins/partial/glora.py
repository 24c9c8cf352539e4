"""GLoRA (arXiv 2306.07967): scale and shift of weight and bias in one form.

``W' = W (1 + A) + B`` and ``b' = b (1 + D) + E + W C``, products with ``A`` and ``D`` entry by entry. ``A`` and ``B``
are low-rank, a vector (one number for each output), a scalar or none; ``C`` is low-rank, a vector or none; ``D`` and
``E`` are a vector, a scalar or none. The paper searches a structure for each layer by evolution; here one structure,
chosen by the settings, serves all layers. One factor of each is zero at the start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mtpeft.api import Count, Declarations, Method, Site, WeightPart, zeros

Support = Literal["lora", "vector", "scalar", "none"]
Prompt = Literal["lora", "vector", "none"]
Shift = Literal["vector", "scalar", "none"]


class LowRankMatrix(nn.Module):
    """``up (rows, r)`` zero times ``down (r, columns)`` Kaiming-uniform."""

    def __init__(self, rows: int, columns: int, rank: int) -> None:
        super().__init__()
        self.up, self.down = zeros(rows, rank), nn.Parameter(torch.empty(rank, columns))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self) -> Tensor:
        return self.up @ self.down


class Free(nn.Module):
    """A trained tensor."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.value = zeros(*shape)

    def forward(self) -> Tensor:
        return self.value


def support(kind: str, rows: int, columns: int, rank: int) -> nn.Module | None:
    """A tensor that broadcasts to ``(rows, columns)``; None for ``none``."""
    if kind == "lora":
        return LowRankMatrix(rows, columns, rank)
    return {"vector": Free(rows, 1), "scalar": Free(1, 1)}.get(kind)


def has_trained_bias(site: Site) -> bool:
    """Whether there is a bias to scale; the k of a BEiT-like attention has a constant zero, which no scale changes."""
    return any(isinstance(site.model.original(ref.path, ref.name), nn.Parameter) for ref in site.bias)


class Generalized(WeightPart):
    """The supports ``A B (out, in)``, ``C (in, 1)``, ``D E (out, 1)``, each as its setting says."""

    def __init__(self, site: Site, method: Glora) -> None:
        super().__init__()
        out, inputs = site.matrix_shape
        self.A = support(method.weight_scale, out, inputs, method.rank)
        self.B = support(method.weight_shift, out, inputs, method.rank)
        self.C = support(method.prompt, inputs, 1, method.rank)
        self.D = support(method.bias_scale if has_trained_bias(site) else "none", out, 1, 1)
        self.E = support(method.bias_shift, out, 1, 1)

    def forward(self, weight: Tensor) -> Tensor:
        flat = weight.flatten(1)
        flat = flat if self.A is None else flat * (1 + self.A())
        return (flat if self.B is None else flat + self.B()).view_as(weight)

    def bias(self, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        terms = [] if bias is None else [bias if self.D is None else bias * (1 + self.D()[:, 0])]
        if self.E is not None:
            terms.append(self.E()[:, 0].expand(len(weight)))
        if self.C is not None:
            terms.append((weight.flatten(1) @ self.C())[:, 0])
        return sum(terms[1:], terms[0]) if terms else None


@dataclass
class Glora(Method):
    """Scales and shifts weights and biases; each of the five supports has a setting of its own."""

    declares = Declarations(
        category="partial",
        mergeable=True,
        families="all; merges where timm has a bias to fold the shift into",
        paper="GLoRA, arXiv 2306.07967",
    )

    at: str = "attn.q attn.k attn.v attn.proj mlp.fc1 mlp.fc2 | conv"
    rank: Count = 4
    weight_scale: Support = "lora"
    weight_shift: Support = "lora"
    prompt: Prompt = "lora"
    bias_scale: Shift = "vector"
    bias_shift: Shift = "vector"

    def __post_init__(self) -> None:
        chosen = (self.weight_scale, self.weight_shift, self.prompt, self.bias_scale, self.bias_shift)
        self.require(set(chosen) != {"none"}, "all five supports are none", "choose at least one support")

    def part(self, site: Site) -> WeightPart:
        return Generalized(site, self)
