"""SPT (ICCV 2023, arXiv 2303.08566): the most sensitive weights, trained one by one or by a module, under a budget.

The sensitivity of a weight is ``s_n = sum_b g_n^2`` over a few batches ``b``. Of all weights of the linear layers the
``budget`` most sensitive are taken; a matrix that holds at least ``threshold`` times as many of them as a module has
parameters gets the module (LoRA, or an adapter behind it), the densest first, as long as the budget lasts; what is left
of the budget trains the most sensitive weights of the other matrices, stored as values and places. Before data was
seen, ``s_n = W_n^2``. How the budget is shared out between modules and single weights is ours; it bounds all trained
parameters.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtpeft.api import (
    Calibrated,
    Context,
    Count,
    Declarations,
    Method,
    NotApplicable,
    OutputPart,
    Part,
    Positive,
    Routine,
    Site,
    WeightPart,
    fill_down,
    first_batches,
    summed_gradients,
    uncalibrated,
    zeros,
)

NOTHING = torch.zeros(0, dtype=torch.int32)


@dataclass
class Structure:
    """Which matrices get a module, and which single weights of the others are trained (flat indices)."""

    modules: set[str]
    weights: dict[str, Tensor]


def decide(scores: Mapping[str, Tensor], sizes: Mapping[str, int], budget: int, threshold: float) -> Structure:
    """The structure for sensitivities ``{site: (out, in)}``.

    Args:
        sizes: parameters of a site's module; sites that can have none are left out.
    """
    names, lengths = list(scores), [score.numel() for score in scores.values()]
    flat = torch.cat([score.flatten() for score in scores.values()])
    chosen = flat.topk(min(budget, len(flat))).indices  # most sensitive first
    owner = torch.bucketize(chosen, torch.tensor(lengths, device=flat.device).cumsum(0), right=True)
    counts = dict(zip(names, owner.bincount(minlength=len(names)).tolist(), strict=True))
    modules: set[str] = set()
    for name in sorted(sizes, key=lambda n: -counts[n] / sizes[n]):
        if counts[name] >= threshold * sizes[name] and sizes[name] <= budget:
            modules.add(name)
            budget -= sizes[name]
    single = torch.tensor([name not in modules for name in names], device=flat.device)[owner]
    kept, owner, start, weights = chosen[single][:budget], owner[single][:budget], 0, {}
    for number, (name, length) in enumerate(zip(names, lengths, strict=True)):
        weights[name] = (kept[owner == number] - start).sort().values.int()
        start += length
    return Structure(modules, weights)


class Plan(Calibrated):
    """The matrices that an owner may train, and the structure that its parts take when they are bound."""

    def __init__(self, sites: Sequence[Site], structure: Structure) -> None:
        super().__init__()
        self.sites, self.structure = sites, structure


class Planned(Part):
    """A part that may be there or not: `take` says what the structure gives to its site."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.site = site.name.removesuffix(".weight")

    def bind(self, cell: Any, common: nn.Module | None) -> None:
        super().bind(cell, common)
        self.take(self.common.structure)

    @abstractmethod
    def take(self, structure: Structure) -> None:
        """Become what ``structure`` says of this site."""


class SingleWeights(Planned, WeightPart):
    """Changes of some weights, ``values (n,)`` at the flat ``places (n,)``."""

    places: Tensor | None

    def take(self, structure: Structure) -> None:
        self.hold(structure.weights.get(self.site, NOTHING))

    def hold(self, places: Tensor) -> None:
        self.register_buffer("places", places.clone() if len(places) else None)
        self.values = nn.Parameter(torch.zeros(len(places), device=places.device)) if len(places) else None

    def fit(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.hold(torch.zeros(shapes.get("values", (0,)), dtype=torch.int32))

    def forward(self, weight: Tensor) -> Tensor:
        if self.values is None or self.places is None:
            return weight
        return weight.flatten().index_add(0, self.places, self.values.to(weight.dtype)).view_as(weight)


class PlannedLowRank(Planned, WeightPart):
    """LoRA where the structure asks for it: ``A (r, in)`` Kaiming-uniform and ``B (out, r)`` zero.

    A weight part like the single weights beside it: one part that needs the weight itself makes all of them run there.
    """

    def __init__(self, site: Site, hidden: int) -> None:
        super().__init__(site)
        self.hidden, self.shape = hidden, site.shape

    def take(self, structure: Structure) -> None:
        self.hold(self.site in structure.modules)

    def fit(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.hold("A" in shapes)

    def hold(self, present: bool) -> None:
        out, into = self.shape
        self.A = nn.Parameter(torch.empty(self.hidden, into)) if present else None
        self.B = zeros(out, self.hidden) if present else None
        if self.A is not None:
            fill_down(self.A, "kaiming")

    def forward(self, weight: Tensor) -> Tensor:
        return weight if self.A is None or self.B is None else weight + self.B @ self.A


class PlannedAdapter(Planned, OutputPart):
    """A bottleneck behind the layer where the structure asks for it: ``y + up(GELU(down y))``, ``up`` zero."""

    def __init__(self, site: Site, hidden: int) -> None:
        super().__init__(site)
        self.hidden, self.width = hidden, site.out_features

    def take(self, structure: Structure) -> None:
        self.hold(self.site in structure.modules)

    def fit(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.hold("up.weight" in shapes)

    def hold(self, present: bool) -> None:
        self.down = nn.Linear(self.width, self.hidden) if present else None
        self.up = nn.Linear(self.hidden, self.width) if present else None
        if self.up is not None:
            for tensor in self.up.parameters():
                nn.init.zeros_(tensor)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y if self.down is None or self.up is None else y + self.up(F.gelu(self.down(y)))


@dataclass
class Spt(Method):
    """Puts a budget of parameters where the task's gradients are: modules in dense places, else single weights."""

    at: str = "linear *.weight"
    form: Literal["lora", "adapter"] = "lora"
    budget: Count = 400_000
    hidden: Count = 8
    threshold: Positive = 0.1
    calibration_batches: Count = 16

    @property
    def declares(self) -> Declarations:
        return Declarations(
            category="partial",
            mergeable=self.form == "lora",
            families="transformers and ConvNeXt; adapters only behind layers that are called",
            paper="Sensitivity-Aware Visual PEFT, ICCV 2023, arXiv 2303.08566",
        )

    def part(self, site: Site) -> Part | None:
        if "parameter" in site.tags:
            return SingleWeights(site) if isinstance(site.module, nn.Linear) else None
        if self.form == "lora":
            return PlannedLowRank(site, self.hidden)
        return None if site.bypassed else PlannedAdapter(site, self.hidden)

    def common(self, sites: Sequence[Site]) -> nn.Module:
        linear = [site for site in sites if "linear" in site.tags]
        if not linear:
            raise NotApplicable(
                f"spt trains linear layers, and {sites[0].model.family} has none outside its classifier"
            )
        return Plan(linear, self.decide(linear, [site.weight.float().square() for site in linear]))

    def decide(self, sites: Sequence[Site], scores: Sequence[Tensor]) -> Structure:
        sizes = {site.name: self.size(site) for site in sites if self.form == "lora" or not site.bypassed}
        named = {site.name: score for site, score in zip(sites, scores, strict=True)}
        return decide(named, sizes, self.budget, self.threshold)

    def size(self, site: Site) -> int:
        """Parameters of a module at the site."""
        out, into = site.shape
        return self.hidden * (into + out) if self.form == "lora" else self.hidden * (2 * out + 1) + out

    def routine(self) -> MostSensitive:
        return MostSensitive(self)


class MostSensitive(Routine[Spt]):
    """Chooses the structure before training."""

    def calibrate(self, context: Context) -> None:
        """Decide the structure of each owner once, by the gradients of its tasks."""
        for placed, tasks in uncalibrated(self.method, context):
            sites = placed[0].part.common.sites
            batches = first_batches(context, tasks, self.method.calibration_batches)
            scores = summed_gradients(context, sites, batches, context.loss, torch.square)
            if scores is None:
                continue
            structure = self.method.decide(sites, scores)
            for p in placed:
                p.part.take(structure)
                p.part.to(p.site.weight.device)
                p.part.common.done.fill_(True)
