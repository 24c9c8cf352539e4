"""NOAH (TPAMI 2024, arXiv 2206.04673): which prompts, low-rank updates and adapters a block gets is searched for.

Block ``l`` takes ``p`` prompt tokens (VPT-Deep; behind the last block that has some, those of the block before go on),
updates of rank ``r`` of query and value, ``W' = W + B[:, :r] A[:r]``, and an adapter of width ``h`` behind its MLP,
``y' = y + U[:, :h] phi(D[:h] y + d[:h]) + u`` with ``phi(x) = x sigmoid(1.702 x)``. The *supernet* holds the largest of
each. A *subnet* takes leading tokens, ranks and units of it, so that all share weights: each of the three has a depth
(a quarter of the blocks, two, three or all), a number of ``sizes`` in every block up to it and 0 behind.

For the first share ``supernet`` of the updates each one trains a subnet drawn at random. Then evolution looks for the
best subnet of at most ``budget`` parameters: ``generations`` times the ``parents`` best so far are mutated and crossed,
half a ``population`` each, and scored by the task's metric on ``samples`` of its validation split; several tasks count
by their change relative to the whole supernet, and of equal subnets the larger wins. The chosen one is cut out of the
supernet: it alone trains on, runs, is counted and saved. Each owner is searched once, in the first stage it trains in;
an evaluation before that sees the whole supernet.

Where ours differs from the released code: the chosen subnet trains on from the supernet's weights, where the paper
trains it anew (500 and 100 epochs); ``population`` 50 and 15 generations there. LoRA keeps its zero start, which the
released code overwrites; adapters start as there, truncated-normal (.02). Query and value have factors of their own
(``at = "tokens attn.qkv mlp"`` for one pair over all three, as released: as many parameters). No dropout, and none of
the prompts at the input that the released code counts and never uses. A mutation also redraws single sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtpeft.api import (
    Calibrated,
    Context,
    Count,
    Declarations,
    LowRankPart,
    Method,
    NotApplicable,
    OutputPart,
    Part,
    Routine,
    Share,
    Site,
    TokenPart,
    Whole,
    drawn_prompts,
    fill_down,
    uncalibrated,
    zeros,
)
from mtpeft_plugins.unified._subnets import KINDS, Space, Subnet, evolve, kind_of


class Elastic(Part):
    """A module of which the first ``active`` tokens, ranks or units act (None: all there are).

    Attributes:
        along: trained tensor -> the dimension along which it is cut.
        largest: the size that is held.
    """

    along: ClassVar[dict[str, int]]
    active: int | None = None

    def __init__(self, largest: int) -> None:
        super().__init__()
        self.largest = largest

    @property
    def size(self) -> int:
        return self.largest if self.active is None else self.active

    def cut(self, size: int) -> None:
        """Keep what acts at ``size``, and nothing else."""
        for name, dimension in self.along.items():
            kept = getattr(self, name).detach().narrow(dimension, 0, size)
            setattr(self, name, nn.Parameter(kept.clone()))
        self.largest, self.active = size, None

    def fit(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        for name, parameter in list(self._parameters.items()):
            shape = shapes.get(name)
            if shape is None or parameter is None:
                continue
            if parameter.shape != shape:
                self._parameters[name] = zeros(*shape)
            if name in self.along:
                self.largest = shape[self.along[name]]


class ElasticPrompt(Elastic, TokenPart):
    """Tokens ``(1, p, d)`` as those of VPT; with none of its own, it hands on what the block before made of its own."""

    along = {"tokens": 1}

    def __init__(self, site: Site, largest: int) -> None:
        super().__init__(largest)
        self.tokens = drawn_prompts(site, largest, site.width)

    @property
    def added(self) -> int:
        return self.size

    def forward(self, x: Tensor) -> Tensor:
        if self.size == 0 and "prompts" in self.scratch:
            return self.scratch["prompts"]
        return self.tokens[:, : self.size]

    def returned(self, tokens: Tensor) -> None:
        self.scratch["prompts"] = tokens


class ElasticLowRank(Elastic, LowRankPart):
    """``A (r, in)`` Kaiming-uniform and ``B (out, r)`` zero."""

    along = {"A": 0, "B": 1}

    def __init__(self, site: Site, largest: int) -> None:
        super().__init__(largest)
        self.A, self.B = nn.Parameter(torch.empty(site.down_shape(largest))), zeros(site.out_features, largest)
        fill_down(self.A, "kaiming")

    def factors(self) -> tuple[Tensor, Tensor, float]:
        return self.A[: self.size], self.B[:, : self.size], 1.0


class ElasticAdapter(Elastic, OutputPart):
    """A bottleneck behind its module; at width 0 it is not there."""

    along = {"down": 0, "down_bias": 0, "up": 1}

    def __init__(self, site: Site, largest: int) -> None:
        super().__init__(largest)
        self.down = nn.Parameter(nn.init.trunc_normal_(torch.empty(largest, site.width), std=0.02))
        self.up = nn.Parameter(nn.init.trunc_normal_(torch.empty(site.width, largest), std=0.02))
        self.down_bias, self.up_bias = zeros(largest), zeros(site.width)

    def cut(self, size: int) -> None:
        super().cut(size)
        if size == 0:
            self.up_bias = zeros(0)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.size == 0:
            return y
        hidden = F.linear(y, self.down[: self.size], self.down_bias[: self.size])
        return y + F.linear(hidden * torch.sigmoid(1.702 * hidden), self.up[:, : self.size], self.up_bias)


class Supernet(Calibrated):
    """The subnets of an owner, and whether one was chosen (``done``)."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.space = space


def assign(placed: Sequence[Any], sizes: Mapping[str, int]) -> None:
    """Let modules act at these sizes; the others, all there is of them."""
    for p in placed:
        p.part.active = sizes.get(p.site.name)


@dataclass
class Noah(Method):
    """A supernet of prompts, LoRA and adapters, of which evolution on validation data keeps the best subnet."""

    declares = Declarations(
        category="unified",
        identity_at_init=False,
        families="transformers; prompts are left out of the search where relative positions have no place for them",
        paper="Neural Prompt Search, TPAMI 2024, arXiv 2206.04673",
    )

    at: str = "tokens attn.q attn.v mlp"
    sizes: list[int] = field(default_factory=lambda: [1, 5, 10])
    budget: Count = 430_000
    supernet: Share = 0.5
    generations: Whole = 6
    population: int = 20
    parents: Count = 6
    samples: Count = 100

    def __post_init__(self) -> None:
        self.require(bool(self.sizes) and min(self.sizes) >= 1, f"sizes is {self.sizes}", "give sizes of at least 1")
        self.require(self.population >= 2, f"population is {self.population}", "a generation has at least two subnets")

    def common(self, sites: Sequence[Site]) -> nn.Module:
        space, family = Space(sites, self.sizes), sites[0].model.family
        if len(space.kinds) < 2:
            only = next((f"only {KINDS[kind]}" for kind in space.kinds), "none of them")
            raise NotApplicable(
                f"noah chooses among prompts, low-rank updates and adapters, and these sites of {family} take {only}",
                hint='choose others with at: "attn.qkv mlp" for one where q, k and v are interleaved',
            )
        least = space.cost(space.smallest)
        message = f"budget is {self.budget}, and the smallest subnet of {family} has {least} parameters"
        self.require(least <= self.budget, message, "raise the budget, or give smaller sizes")
        return Supernet(space)

    def part(self, site: Site) -> Part | None:
        kinds = {"prompt": ElasticPrompt, "lora": ElasticLowRank, "adapter": ElasticAdapter}
        kind = kind_of(site)
        return None if kind is None else kinds[kind](site, max(self.sizes))

    def routine(self) -> SubnetSearch:
        return SubnetSearch(self)


class SubnetSearch(Routine[Noah]):
    """Trains subnets of each owner's supernet in turn, then keeps the best one."""

    def begin_update(self, context: Context) -> bool:
        """Draw the subnet that this update trains, one for all owners; or choose for good, once it is time."""
        if context.step >= math.ceil(self.method.supernet * context.steps):
            return self.choose(context)
        for placed, _ in uncalibrated(self.method, context):
            space, random = placed[0].part.common.space, self.random(context, str(context.step))
            assign(placed, space.named(space.draw(random)))
        return False

    def after_step(self, context: Context) -> None:
        assign(context.parts(self.method), {})

    def end_stage(self, context: Context) -> None:
        self.choose(context)

    def choose(self, context: Context) -> bool:
        """Search for each owner that has no subnet yet, and cut what it keeps; whether there was one."""
        settings, found = self.method, list(uncalibrated(self.method, context))
        for placed, tasks in found:
            common = placed[0].part.common
            score, random = self.scores(context, placed, tasks), self.random(context, placed[0].owner)
            effort = (settings.generations, settings.population, settings.parents)
            best = evolve(common.space, score, settings.budget, random, *effort)
            for p in placed:
                p.part.cut(common.space.named(best)[p.site.name])
            common.done.fill_(True)
        return bool(found)

    def scores(self, context: Context, placed: Sequence[Any], tasks: Sequence[str]) -> Callable[[Subnet], float]:
        """A function from a subnet to how good it is: the sum over tasks of its relative gain on the supernet."""
        space = placed[0].part.common.space

        def measured(subnet: Subnet) -> list[float | None]:
            assign(placed, space.named(subnet))
            return [context.score(task, self.method.samples) for task in tasks]

        whole = measured(space.whole)

        def gain(subnet: Subnet) -> float:
            pairs = zip(measured(subnet), whole, strict=True)
            defined = [(own, all_) for own, all_ in pairs if own is not None and all_ is not None]
            return sum((own - all_) / (abs(all_) or 1) for own, all_ in defined)

        return gain

    def random(self, context: Context, what: str) -> Random:
        """A generator of its own for a moment of the run."""
        return Random(f"noah {context.seed} {context.stage} {what}")
