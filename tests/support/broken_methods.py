"""Methods that each break one promise: the kit must say which."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtpeft.api import (
    Context,
    Declarations,
    Features,
    FeaturesInfo,
    LowRankPart,
    Method,
    OutputPart,
    Passes,
    Route,
    Routine,
    Site,
    WeightPart,
    zeros,
)
from support.continual_methods import ChosenPrompts, PromptPool, RandomProjection, Ridge


class Factors(LowRankPart):
    def __init__(self, site: Site, start: float = 0.0) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.randn(2, *site.shape[1:]) / 5)
        self.B = nn.Parameter(start * torch.randn(site.out_features, 2))

    def factors(self) -> tuple[Tensor, Tensor, float]:
        return self.A, self.B, 1.0


@dataclass
class Sound(Method):
    """Breaks nothing."""

    declares = Declarations(category="partial", mergeable=True)
    at: str = "mlp.fc1 | conv"

    def part(self, site: Site) -> WeightPart:
        return Factors(site)


@dataclass
class NoIdentity(Sound):
    """Says it starts as an identity, and starts elsewhere."""

    def part(self, site: Site) -> WeightPart:
        return Factors(site, start=0.1)


@dataclass
class HiddenIdentity(Sound):
    """Says it is no identity, and is one."""

    declares = replace(Sound.declares, identity_at_init=False)


class DeadFactors(Factors):
    def __init__(self, site: Site) -> None:
        super().__init__(site)
        nn.init.zeros_(self.A)


@dataclass
class BothZero(Sound):
    """Both factors start at zero, so neither ever gets a gradient."""

    def part(self, site: Site) -> WeightPart:
        return DeadFactors(site)


class WritingFactors(Factors):
    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.__dict__["frozen"] = site.weight

    def factors(self) -> tuple[Tensor, Tensor, float]:
        if self.training:
            self.__dict__["frozen"].data.mul_(1.001)
        return super().factors()


@dataclass
class WritesTheBackbone(Sound):
    """Changes the frozen weight while it trains."""

    def part(self, site: Site) -> WeightPart:
        return WritingFactors(site)


class TwoFaced(Factors):
    """Its activation path is not what its weight view says."""

    def project(self, x: Tensor, a: Tensor) -> Tensor:
        return F.linear(x, 2 * a)


@dataclass
class MergesWrong(Sound):
    """The weight that it merges is not the one it runs."""

    def part(self, site: Site) -> WeightPart:
        return TwoFaced(site)


@dataclass
class DeniesMerging(Sound):
    """Says it does not merge, and does."""

    declares = replace(Sound.declares, mergeable=False)


class Activation(OutputPart):
    def __init__(self, site: Site) -> None:
        super().__init__()
        self.gain = zeros(site.width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.gain * torch.tanh(y)


@dataclass
class ClaimsToMerge(Method):
    """Says it merges, and no weight can hold it."""

    declares = Declarations(category="partial", mergeable=True)
    at: str = "mlp"

    def part(self, site: Site) -> OutputPart:
        return Activation(site)


class BatchMean(Activation):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.gain * y.mean(0, keepdim=True)


@dataclass
class MixesSamples(Method):
    """Looks at the other samples of a batch."""

    declares = Declarations(category="partial")

    at: str = "mlp"

    def part(self, site: Site) -> OutputPart:
        return BatchMean(site)


class Remembering(Activation):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.__dict__["calls"] = self.__dict__.get("calls", 0) + 1
        return y + self.gain * self.__dict__["calls"] * torch.tanh(y)


@dataclass
class CountsItsCalls(Method):
    """Gives another answer each time."""

    declares = Declarations(category="partial")

    at: str = "mlp"

    def part(self, site: Site) -> OutputPart:
        return Remembering(site)


class Closure(Activation):
    """Reads its gain through a function that was made for the first copy."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        gain = self.gain
        self.read = lambda: gain

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.read() * torch.tanh(y)


@dataclass
class ReadsTheOriginal(Method):
    """After a deep copy, the copy reads the parts of the original."""

    declares = Declarations(category="partial")

    at: str = "mlp"

    def part(self, site: Site) -> OutputPart:
        return Closure(site)


class Unsaved(Activation):
    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.register_buffer("mask", torch.bernoulli(torch.full((site.width,), 0.5)), persistent=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.mask * self.gain * torch.tanh(y)


@dataclass
class ForgetsItsMask(Method):
    """A random mask that is not saved."""

    declares = Declarations(category="partial")

    at: str = "mlp"

    def part(self, site: Site) -> OutputPart:
        return Unsaved(site)


@dataclass
class KeepsABias(Sound):
    """A setting with a default that its own checks change."""

    rank: int = 4

    def __post_init__(self) -> None:
        self.rank += 1


class Drifting(Activation):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.gain * torch.tanh(y) * (1 + self.__class__.noise())

    @staticmethod
    def noise() -> float:
        return random.random() if torch.is_grad_enabled() else 0.0


@dataclass
class DrawsElsewhere(Method):
    """Draws from a generator that no seed of torch reaches."""

    declares = Declarations(category="partial")

    at: str = "mlp"

    def part(self, site: Site) -> OutputPart:
        return Drifting(site)


@dataclass
class SpeaksOfNothing(Sound):
    """Refuses in more than a sentence."""

    def part(self, site: Site) -> WeightPart:
        self.require(False, "no.")
        return Factors(site)


class NotADataclass(Sound):
    """Has settings, and is no dataclass: its own pattern is not read."""

    at: str = "attn"


@dataclass
class DeclaresASetting(Sound):
    """Anyone may set what it declares."""

    declares: Declarations = Sound.declares


@dataclass
class DeclaresBeside(Sound):
    """Declares in a place that nothing reads."""

    mergeable = False


@dataclass
class DeclaresNoValue(Sound):
    """Declares as nobody can read it."""

    declares = {"category": "partial"}


@dataclass
class NoCategory(Sound):
    """Does not say where to list it."""

    declares = replace(Sound.declares, category="")


@dataclass
class AcceptsAWord(Sound):
    """Forgets the comma: the types of task that it accepts are one word's letters."""

    declares = replace(Sound.declares, accepts=("cls"))


@dataclass
class AcceptsNothingKnown(Sound):
    """Misspells the type of task that it accepts."""

    declares = replace(Sound.declares, accepts=("clss",))


@dataclass
class DeclaresAWord(Sound):
    """A declaration is neither true nor false."""

    declares = replace(Sound.declares, mergeable="yes")


@dataclass
class NeverPasses(Sound):
    """Declares no pass over the backbone."""

    declares = replace(Sound.declares, inference_passes=0)


@dataclass
class NeverLearns(Sound):
    """Declares a learning rate of zero."""

    declares = replace(Sound.declares, learning_rate=0.0)


@dataclass
class Undocumented(Sound):
    pass


Undocumented.__doc__ = "Undocumented(scope: str = 'shared')"  # what dataclass writes where nobody has


@dataclass(eq=False)
class Misspelt(Routine[Method]):
    def after_bakward(self, context: Context) -> None:
        raise AssertionError


@dataclass
class MisspeltHook(Sound):
    """Its hook never runs."""

    def routine(self) -> Misspelt:
        return Misspelt(self)


@dataclass
class HookOnTheMethod(Sound):
    """Its hook is no routine's, and never runs."""

    def after_backward(self, context: Context) -> None:
        raise AssertionError


class MisspeltBias(WeightPart):
    def __init__(self, site: Site) -> None:
        super().__init__()
        self.gain = zeros(site.out_features)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * (1 + self.gain[:, None])

    def bais(self, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        return bias


@dataclass
class MisspellsInItsPart(Sound):
    """The bias is left as it is."""

    def part(self, site: Site) -> WeightPart:
        return MisspeltBias(site)


@dataclass
class NoPattern(Method):
    """No site gets its part."""

    declares = Declarations(category="partial", mergeable=True)

    def part(self, site: Site) -> WeightPart:
        return Factors(site)


@dataclass
class ForgetsToReturn(Sound):
    """Its part is built and lost."""

    def part(self, site: Site) -> None:
        Factors(site)


@dataclass
class MatchesNothing(Sound):
    """Its pattern is misspelt, so that every family refuses."""

    at: str = "mpl.fc1"


@dataclass
class NoRange(Sound):
    """Takes any rank."""

    rank: int = 2

    def part(self, site: Site) -> WeightPart:
        torch.empty(self.rank)
        return Factors(site)


class Narrow(Activation):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x, y).mean(1, keepdim=True)


@dataclass
class GivesOneToken(Method):
    """The stream broadcasts what its part gives."""

    declares = Declarations(category="partial", identity_at_init=False)
    at: str = "mlp"

    def part(self, site: Site) -> OutputPart:
        return Narrow(site)


class Wider(Activation):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([y, y], -1)


@dataclass
class GivesTooMuch(Method):
    """Nothing fits what its part gives."""

    declares = Declarations(category="partial")

    at: str = "mlp"

    def part(self, site: Site) -> OutputPart:
        return Wider(site)


@dataclass
class GivesALayer(Method):
    """A layer is no part."""

    declares = Declarations(category="partial")

    at: str = "mlp"

    def part(self, site: Site) -> nn.Module:
        return nn.Linear(site.width, site.width)


class LooseTensor(Activation):
    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.scale = torch.linspace(1, 2, site.width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.scale * self.gain * torch.tanh(y)


@dataclass
class LeavesATensorBehind(Method):
    """One of its tensors stays where it is when the host moves to another device."""

    declares = Declarations(category="partial")

    at: str = "mlp"

    def part(self, site: Site) -> OutputPart:
        return LooseTensor(site)


@dataclass
class OnePartForAll(Method):
    """Gives the same part to every site."""

    declares = Declarations(category="partial")

    at: str = "mlp"

    def part(self, site: Site) -> OutputPart:
        return self.__dict__.setdefault("only", Activation(site))


@dataclass
class SharesInSecret(Sound):
    """Every task trains what each should own."""

    def owners(self, task: str | None, seen: object) -> tuple[str, ...]:
        return ("shared",)


@dataclass
class NeedsNothing(Sound):
    """Says that it must know the task, and runs without."""

    declares = replace(Sound.declares, needs_task_id=True)


@dataclass
class CountsForNothing(Sound):
    """Says that it must know how many stages there will be, and never asks."""

    declares = replace(Sound.declares, needs_task_count=True)


@dataclass(eq=False)
class Shares(Routine[Method]):
    def begin_stage(self, context: Context) -> None:
        self.share = 1 / context.stages


@dataclass
class SharesOutStages(Sound):
    """Asks how many stages there will be, and does not say that it must know."""

    def routine(self) -> Shares:
        return Shares(self)


@dataclass
class TwoPasses(Sound):
    """Runs the backbone twice, and says once."""

    def encode(self, host, images, route):
        host.run(images, route)
        return host.run(images, route)


@dataclass(eq=False)
class Shrinking(Routine[Method]):
    steps: int = 0

    @torch.no_grad()
    def after_step(self, context: Context) -> None:
        self.steps += 1
        for parameter in context.host.shared_parameters().values():
            parameter.mul_(1 - 0.01 * self.steps)


@dataclass
class ForgetsItsSteps(Sound):
    """Shrinks what it trains by a step count that no restart survives."""

    def routine(self) -> Shrinking:
        return Shrinking(self)


@dataclass(eq=False)
class ShrinkingLater(Shrinking):
    """Counts stages, and shrinks from the second on."""

    def after_step(self, context: Context) -> None:
        if self.steps:
            super().after_step(context)

    def end_stage(self, context: Context) -> None:
        self.steps += 1


@dataclass
class ForgetsItsStage(Sound):
    """What it knows of the stage before is not there after a restart."""

    def routine(self) -> ShrinkingLater:
        return ShrinkingLater(self)


@dataclass(eq=False)
class Raising(Routine[Method]):
    def after_step(self, context: Context) -> None:
        raise ValueError("steps are\nnot for me")


@dataclass
class RaisesInAHook(Sound):
    """One of its hooks is wrong."""

    def routine(self) -> Raising:
        return Raising(self)


@dataclass(eq=False)
class ModeChanging(Routine[Method]):
    def begin_update(self, context: Context) -> bool:
        context.host.eval()
        return False


@dataclass
class ChangesTheMode(Sound):
    """From its first hook on, dropout is off."""

    def routine(self) -> ModeChanging:
        return ModeChanging(self)


@dataclass(eq=False)
class Freezing(Routine[Method]):
    """Freezes what was trained, as most isolating methods do."""

    def end_stage(self, context: Context) -> None:
        context.host.freeze("shared")


@dataclass
class Freezes(Sound):
    """Breaks nothing: what the first stage trained stays."""

    def routine(self) -> Freezing:
        return Freezing(self)


@dataclass(eq=False)
class Thawing(Freezing):
    @torch.no_grad()
    def after_step(self, context: Context) -> None:
        for placed in context.host.parts_of(self.method, context.tasks):
            placed.part.B.add_(0.1)


@dataclass
class MovesTheFrozen(Sound):
    """Asks the host for its parts, and not the context: the frozen ones are among them."""

    def routine(self) -> Thawing:
        return Thawing(self)


@dataclass(eq=False)
class Opening(Routine[Method]):
    def begin_update(self, context: Context) -> bool:
        context.host.focus(None)
        return False


@dataclass
class OpensEverything(Sound):
    """The parts of earlier tasks act, and get gradients that nobody steps or clears."""

    scope: str = "task"

    def owners(self, task: str | None, seen: Sequence[str]) -> tuple[str, ...]:
        return tuple(seen)

    def routine(self) -> Opening:
        return Opening(self)


@dataclass(eq=False)
class Teaching(Routine[Method]):
    def end_stage(self, context: Context) -> None:
        self.teacher = {n: t.detach().clone() for n, t in context.host.tensors("shared").items()}


@dataclass
class HoldsATeacher(Sound):
    """A copy of the model that no file holds and nobody counts."""

    def routine(self) -> Teaching:
        return Teaching(self)


@dataclass
class ActsForOthers(Sound):
    """Each task owns its parts, and the last one's act for all of them."""

    scope: str = "task"

    def encode(self, host: Passes, images: Tensor, route: Route) -> Features:
        return host.run(images, Route.single(host.tasks[-1], len(images)))


@dataclass
class AsksInSecret(Sound):
    """Asks the plain backbone, and declares one pass."""

    def encode(self, host: Passes, images: Tensor, route: Route) -> Features:
        host.plain(images)
        return host.run(images, route)


@dataclass
class PassesForEach(Sound):
    """Declares a pass for each task, and takes one."""

    declares = replace(Sound.declares, passes_per_task=True)


@dataclass
class NobodyPullsTheKeys(PromptPool):
    """Its keys choose, and nothing trains them."""

    def routine(self) -> None:
        return None


class QueryBeside(ChosenPrompts):
    """Reads the last query that anyone asked, not that of its pass."""

    def given(self, name: str) -> Tensor | None:
        query = self.common.__dict__.get("query")
        return None if query is None else query[self.__dict__["pass_state"].rows]


@dataclass
class KeepsTheQueryBeside(PromptPool):
    """Hands its query to its parts beside the pass: a checkpoint finds another's."""

    def part(self, site: Site) -> QueryBeside:
        return QueryBeside(self.chosen)

    def encode(self, host: Any, images: Tensor, route: Route) -> Features:
        for placed in host.parts_of(self, host.tasks):
            placed.part.common.__dict__["query"] = host.plain(images).pooled
        return host.run(images, route)


class Loose(Ridge):
    """Its statistics are attributes."""

    def __init__(self, info: FeaturesInfo, classes: Sequence[str], width: int) -> None:
        super().__init__(info, classes, width)
        weight = self._buffers.pop("weight")
        self.weight = weight

    def extend(self, classes: Sequence[str], info: FeaturesInfo | None = None) -> None:
        super().extend(classes, info)

    def solve(self, ridge: float) -> None:
        self.weight = torch.linalg.solve(self.gram + ridge * torch.eye(len(self.gram)), self.sums.T).T


@dataclass
class LosesItsHead(RandomProjection):
    """The solution that its head answers by is in no file."""

    def classifier(self, info: FeaturesInfo, classes: Sequence[str]) -> Loose:
        return Loose(info, classes, self.width)


@dataclass
class OwnedByNobody(Sound):
    """Its parts belong to an owner that is neither shared nor a task."""

    def owners(self, task: str | None, seen: Sequence[str]) -> tuple[str, ...]:
        return ("pool",)


@dataclass(eq=False)
class Hoarding(Routine[Method]):
    def after_step(self, context: Context) -> None:
        self.memory.budget = 10_000
        for batch in context.batch:
            for key in batch.keys:
                self.memory.add(key)


@dataclass
class Hoards(Sound):
    """Keeps every sample it meets."""

    def routine(self) -> Hoarding:
        return Hoarding(self)


class OnlyABuffer(OutputPart):
    def __init__(self, site: Site) -> None:
        super().__init__()
        self.register_buffer("gain", torch.zeros(site.width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.gain


@dataclass
class TrainsNothing(Method):
    """Its parts hold no parameter."""

    declares = Declarations(category="partial")

    at: str = "mlp"

    def part(self, site: Site) -> OutputPart:
        return OnlyABuffer(site)


class BuildsNothing(Method):
    """Has no `part`, so that it cannot be built."""

    declares = Declarations(category="partial")
