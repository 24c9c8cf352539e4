"""Methods that stand for what later ones will need of the contracts; each is as small as its idea allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mtpeft.api import (
    Declarations,
    Features,
    FeaturesInfo,
    InputPart,
    KeyValuePart,
    LowRankPart,
    Method,
    NotApplicable,
    OutputPart,
    Passes,
    PerTask,
    Route,
    Segment,
    Site,
    TokenPart,
    WeightPart,
    zeros,
)


class Rows(KeyValuePart):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.keys, self.values = (nn.Parameter(torch.randn(1, 3, width)) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.keys, self.values


@dataclass
class Prefixes(Method):
    """Extra keys and values (prefix tuning, DualPrompt)."""

    declares = Declarations(category="addition", identity_at_init=False)
    at: str = "attn"

    def part(self, site: Site) -> KeyValuePart:
        return Rows(site.width)


class Stretch(InputPart):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.matrix, self.shift = zeros(width, width), zeros(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + x @ self.matrix.T + self.shift

    def affine(self) -> tuple[Tensor, Tensor]:
        return self.matrix + torch.eye(len(self.matrix)), self.shift


@dataclass
class Stretched(Method):
    """An affine map before a linear layer (RepAdapter, ARC)."""

    declares = Declarations(category="addition", mergeable=True)
    at: str = "attn.proj mlp.fc1 | conv1"

    def part(self, site: Site) -> InputPart:
        return Stretch(site.in_features)


class Turn(OutputPart):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.matrix, self.shift = zeros(width, width), zeros(width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + y @ self.matrix.T + self.shift

    def affine(self) -> tuple[Tensor, Tensor]:
        return self.matrix + torch.eye(len(self.matrix)), self.shift


@dataclass
class Turned(Method):
    """An affine map behind a linear layer (Hydra's sequential branch)."""

    declares = Declarations(category="addition", mergeable=True)
    at: str = "mlp.fc2"

    def part(self, site: Site) -> OutputPart:
        return Turn(site.out_features)


class Basis(nn.Module):
    """Shared by all sites of one owner, with a vector for each task."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.U = nn.Parameter(torch.randn(4, width) / width**0.5)
        self.gain = PerTask(lambda: nn.Parameter(torch.ones(4)))


class Core(LowRankPart):
    def __init__(self, site: Site) -> None:
        super().__init__()
        self.V = zeros(site.out_features, 4)

    def factors(self) -> tuple[Tensor, Tensor, float]:
        return self.common.U, self.V * self.common.gain.current, 1.0


@dataclass
class Factored(Method):
    """State common to all layers, and in it something for each task (FacT, VeRA; hypernetworks, MTL-LoRA)."""

    declares = Declarations(category="addition", mergeable=True, needs_task_id=True)
    at: str = "attn.q attn.v"

    def common(self, sites: Sequence[Site]) -> nn.Module:
        if len({site.in_features for site in sites}) > 1:
            raise NotApplicable("factored shares one basis, and the layers differ in width")
        return Basis(sites[0].in_features)

    def part(self, site: Site) -> LowRankPart:
        return Core(site)


class Mask(WeightPart):
    def __init__(self, site: Site) -> None:
        super().__init__()
        self.value = zeros(*site.shape)
        self.register_buffer("mask", (torch.rand(site.shape) < 0.5).float())

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.mask * self.value


@dataclass
class Masked(Method):
    """A sparse update whose mask is fixed state (GPS, SPT)."""

    declares = Declarations(category="addition", mergeable=True)
    at: str = "mlp.fc1 | conv"

    def part(self, site: Site) -> WeightPart:
        return Mask(site)


class Highway(OutputPart):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, 2), nn.Linear(2, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.scratch["sum"] = self.down(x) + self.scratch.get("sum", 0.0)
        return y + self.up(self.scratch["sum"])


@dataclass
class Highways(Method):
    """Parts that add to one stream through the network (DTL)."""

    declares = Declarations(category="addition")

    at: str = "block"

    def part(self, site: Site) -> OutputPart:
        if not site.model.tokens:
            raise NotApplicable("highways run beside one sequence of tokens, and this backbone changes its grid")
        return Highway(site.width)


class Update(LowRankPart):
    def __init__(self, site: Site) -> None:
        super().__init__()
        self.A, self.B = nn.Parameter(torch.randn(2, site.in_features)), zeros(site.out_features, 2)

    def factors(self) -> tuple[Tensor, Tensor, float]:
        return self.A, self.B, 0.5


@dataclass
class Accumulated(Method):
    """Every task seen acts, in order; only the current one is trained (O-LoRA, SD-LoRA)."""

    declares = Declarations(category="addition", mergeable=True)
    scope: str = "task"
    at: str = "attn.q attn.v"

    def owners(self, task: str | None, seen: Sequence[str]) -> tuple[str, ...]:
        return tuple(seen) if task is None else tuple(seen[: seen.index(task) + 1])

    def part(self, site: Site) -> LowRankPart:
        return Update(site)


class Prompt(TokenPart):
    def __init__(self, site: Site) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(1, 6, site.width))

    def forward(self, x: Tensor) -> Tensor:
        return self.tokens


@dataclass
class Queried(Method):
    """Two passes: the plain backbone's features stand beside the adapted ones (L2P, APER, EASE)."""

    declares = Declarations(category="addition", identity_at_init=False, inference_passes=2)
    at: str = "tokens"

    def part(self, site: Site) -> TokenPart:
        return Prompt(site)

    def owners(self, task: str | None, seen: Sequence[str]) -> tuple[str, ...]:
        return () if task is None else super().owners(task, seen)

    def encode(self, host: Any, images: Tensor, route: Route) -> Features:
        unknown = Route(tuple(Segment(None, s.start, s.stop) for s in route.segments))
        plain, adapted = host.run(images, unknown), host.run(images, route)
        return replace(adapted, pooled=torch.cat([plain.pooled, adapted.pooled], 1))

    def features_info(self, info: FeaturesInfo, seen: Sequence[str]) -> FeaturesInfo:
        return replace(info, pooled=2 * info.pooled)


class Steer(OutputPart):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.matrix = zeros(width, width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        query = self.given("query")
        return y if query is None else y + (query @ self.matrix)[:, None]


@dataclass
class Steered(Method):
    """What the plain backbone says of an image is given to every layer (hypernetworks, CODA-Prompt)."""

    declares = Declarations(category="addition", inference_passes=2)
    at: str = "mlp"

    def part(self, site: Site) -> OutputPart:
        return Steer(site.width)

    def encode(self, host: Passes, images: Tensor, route: Route) -> Features:
        return host.run(images, route, given={"query": host.plain(images).pooled})


DOUBLES = (Prefixes, Stretched, Turned, Factored, Masked, Highways, Queried, Steered)
"""Those that take both scopes; `Accumulated` is about owners and has tests of its own."""
