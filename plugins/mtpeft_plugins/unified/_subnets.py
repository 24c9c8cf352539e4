"""The subnets of a supernet of prompts, LoRA and adapters, and the evolution that looks for a good one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random

from mtpeft.api import Site

KINDS = {"prompt": "prompts", "lora": "low-rank updates", "adapter": "adapters"}
MUTATE_DEPTH, MUTATE_SIZE = 0.4, 0.2

Subnet = tuple[tuple[int, ...], ...]
"""For each kind of module that there is, in the order of `KINDS`, the size in each block that takes it."""


def kind_of(site: Site) -> str | None:
    """Which of the three a site takes, if any."""
    if "tokens" in site.tags:
        return None if site.model.positions == "relative" else "prompt"
    return "adapter" if site.tensor is None else "lora"


def parameters(site: Site, size: int) -> int:
    """Parameters of a site's module at ``size``."""
    kind = kind_of(site)
    if kind == "prompt":
        return size * site.width
    if kind == "lora":
        return size * (site.weight[0].numel() + site.out_features)
    return size * (2 * site.width + 1) + site.width if size else 0


class Space:
    """The subnets that some sites allow.

    Args:
        sizes: what a module that is there may have.

    Attributes:
        kinds: kind -> block -> the sites there, which share a size.
    """

    def __init__(self, sites: Sequence[Site], sizes: Sequence[int]) -> None:
        found: dict[str, dict[int | None, list[Site]]] = {kind: {} for kind in KINDS}
        for site in sites:
            if (kind := kind_of(site)) is not None:
                found[kind].setdefault(site.block, []).append(site)
        self.sizes, self.kinds = sizes, {kind: blocks for kind, blocks in found.items() if blocks}

    @property
    def whole(self) -> Subnet:
        return tuple((max(self.sizes),) * len(blocks) for blocks in self.kinds.values())

    @property
    def smallest(self) -> Subnet:
        depths = [(len(blocks), self.depths(len(blocks))[0]) for blocks in self.kinds.values()]
        return tuple((min(self.sizes),) * depth + (0,) * (blocks - depth) for blocks, depth in depths)

    def depths(self, blocks: int) -> list[int]:
        return [math.ceil(blocks * quarter / 4) for quarter in (1, 2, 3, 4)]

    def named(self, subnet: Subnet) -> dict[str, int]:
        """Site -> its size."""
        pairs = zip(self.kinds.values(), subnet, strict=True)
        found = [zip(kind.values(), column, strict=True) for kind, column in pairs]
        return {site.name: size for column in found for sites, size in column for site in sites}

    def cost(self, subnet: Subnet) -> int:
        """Parameters of a subnet."""
        sizes = self.named(subnet)
        sites = [site for blocks in self.kinds.values() for there in blocks.values() for site in there]
        return sum(parameters(site, sizes[site.name]) for site in sites)

    def draw(self, random: Random) -> Subnet:
        return tuple(self._column(random, len(blocks)) for blocks in self.kinds.values())

    def mutate(self, subnet: Subnet, random: Random) -> Subnet:
        """Each kind's depth may change, and then each of its sizes."""
        return tuple(self._mutated(column, random) for column in subnet)

    def cross(self, one: Subnet, other: Subnet, random: Random) -> Subnet:
        """Each kind from one of two parents."""
        return tuple(random.choice(pair) for pair in zip(one, other, strict=True))

    def _column(self, random: Random, blocks: int, before: Sequence[int] = ()) -> tuple[int, ...]:
        depth = random.choice(self.depths(blocks))
        new = [random.choice(self.sizes) for _ in range(depth - len(before))]
        return (*before[:depth], *new, *[0] * (blocks - depth))

    def _mutated(self, column: tuple[int, ...], random: Random) -> tuple[int, ...]:
        if random.random() < MUTATE_DEPTH:
            column = self._column(random, len(column), [size for size in column if size])
        return tuple(random.choice(self.sizes) if s and random.random() < MUTATE_SIZE else s for s in column)


def evolve(
    space: Space,
    score: Callable[[Subnet], float],
    budget: int,
    random: Random,
    generations: int,
    population: int,
    parents: int,
) -> Subnet:
    """The best subnet found within the budget; of equal ones, the larger, for a budget is there to be used.

    Args:
        score: of a subnet; the higher, the better. Called once for each.
        budget: parameters a subnet may have; the smallest is within it.
        generations: rounds; in each the ``parents`` best so far have up to ``population`` children.
    """
    found: dict[Subnet, tuple[float, int]] = {}
    best: list[Subnet] = []

    def admit(make: Callable[[], Subnet], number: int) -> None:
        for _ in range(10 * number):
            subnet = make()
            if subnet not in found and space.cost(subnet) <= budget:
                found[subnet] = score(subnet), space.cost(subnet)
                number -= 1
            if number == 0:
                break
        best[:] = sorted(found, key=lambda subnet: found[subnet], reverse=True)[:parents]

    admit(lambda: space.smallest, 1)
    admit(lambda: space.draw(random), population - 1)
    for _ in range(generations):
        admit(lambda: space.mutate(random.choice(best), random), population // 2)
        admit(lambda: space.cross(random.choice(best), random.choice(best), random), population - population // 2)
    return best[0]
