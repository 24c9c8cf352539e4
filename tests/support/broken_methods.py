"""Methods that each break one promise: the kit must say which."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtpeft.api import Context, Declarations, LowRankPart, Method, OutputPart, Routine, Site, WeightPart, zeros


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


class Misspelt(Routine):
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


class SharingOut(Routine):
    def begin_stage(self, context: Context) -> None:
        assert 1 / context.stages <= 1


@dataclass
class SharesOutStages(Sound):
    """Asks how many stages there will be, and does not say that it must know."""

    def routine(self) -> SharingOut:
        return SharingOut(self)


@dataclass
class TwoPasses(Sound):
    """Runs the backbone twice, and says once."""

    def encode(self, host, images, route):
        host.run(images, route)
        return host.run(images, route)


@dataclass(eq=False)
class Shrinking(Routine):
    steps: int = 0

    def after_step(self, context: Context) -> None:
        self.steps += 1
        with torch.no_grad():
            for parameter in context.host.shared_parameters().values():
                parameter.mul_(1 - 0.01 * self.steps)


@dataclass
class ForgetsItsSteps(Sound):
    """Shrinks what it trains by a step count that no restart survives."""

    def routine(self) -> Shrinking:
        return Shrinking(self)


class Raising(Routine):
    def after_step(self, context: Context) -> None:
        raise ValueError("steps are\nnot for me")


@dataclass
class RaisesInAHook(Sound):
    """One of its hooks is wrong."""

    def routine(self) -> Raising:
        return Raising(self)


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
