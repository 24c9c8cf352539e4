"""Five continual methods as a stranger's plugin would write them, from `mtpeft.api` alone.

A prompt pool, a closed-form head, an isolated ensemble, a regulariser and replay: the smallest of each family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtpeft.api import (
    Context,
    Count,
    Declarations,
    Features,
    FeaturesInfo,
    Head,
    Key,
    Method,
    NonNegative,
    ParallelBottleneck,
    Part,
    Passes,
    Positive,
    Route,
    Routine,
    Site,
    Targets,
    TokenPart,
    hookimpl,
)


def positions(head: Head, targets: Targets) -> Tensor:
    """The row ``(B,)`` of each target's class in ``head``."""
    return torch.tensor([head.classes.index(t["classes"][int(t["label"])]) for t in targets])


def local(head: Head, outputs: Tensor, targets: Targets) -> Tensor:
    """Logits ``(B, K)`` in which only the classes that the targets choose between compete."""
    own = {name for target in targets for name in target["classes"]}
    absent = torch.tensor([name not in own for name in head.classes], device=outputs.device)
    return outputs.masked_fill(absent, float("-inf"))


# --- a prompt pool


class Pool(nn.Module):
    """Prompts ``(P, L, C)``, each with a key ``(C,)``."""

    def __init__(self, size: int, length: int, width: int) -> None:
        super().__init__()
        self.prompts = nn.Parameter(torch.empty(size, length, width).uniform_(-1, 1))
        self.keys = nn.Parameter(torch.empty(size, width).uniform_(-1, 1))

    def similarities(self, query: Tensor, chosen: int) -> tuple[Tensor, Tensor]:
        """The largest cosines ``(B, k)`` between queries ``(B, C)`` and keys, and whose they are."""
        return (F.normalize(query, dim=-1) @ F.normalize(self.keys, dim=-1).T).topk(chosen)


class ChosenPrompts(TokenPart):
    def __init__(self, chosen: int) -> None:
        super().__init__()
        self.chosen = chosen

    def forward(self, x: Tensor) -> Tensor:
        query = self.given("query")
        if query is None:
            return self.common.prompts[: self.chosen].flatten(0, 1)[None]
        return self.common.prompts[self.common.similarities(query, self.chosen)[1]].flatten(1, 2)


@dataclass
class PromptPool(Method):
    """Prompts chosen for each image by keys near its plain features (L2P)."""

    declares = Declarations(
        category="continual",
        identity_at_init=False,
        inference_passes=2,
        accepts=("cls",),
        learning_rate=1e-2,
        paper="Learning to Prompt for Continual Learning, CVPR 2022, arXiv 2112.08654",
    )

    at: str = "tokens"
    blocks: str = "0"
    size: Count = 10
    length: Count = 2
    chosen: Count = 4
    pull: NonNegative = 0.5

    def __post_init__(self) -> None:
        self.require(self.chosen <= self.size, f"chosen is {self.chosen}", f"the pool holds {self.size} prompts")

    def common(self, sites: Sequence[Site]) -> nn.Module:
        return Pool(self.size, self.length, sites[0].width)

    def part(self, site: Site) -> TokenPart:
        return ChosenPrompts(self.chosen)

    def encode(self, host: Passes, images: Tensor, route: Route) -> Features:
        return host.run(images, route, given={"query": host.plain(images).pooled})

    def routine(self) -> KeyPull:
        return KeyPull(self)


@dataclass(eq=False)
class KeyPull(Routine[PromptPool]):
    """Draws the chosen keys to their queries; only the classes of this stage compete."""

    def adjust(self, context: Context, task: str, outputs: Any, targets: Targets) -> tuple[Any, Targets]:
        return local(context.host.head_of(task), outputs, targets), targets

    def penalty(self, context: Context) -> Tensor | None:
        terms = []
        for batch in context.batch:
            query = context.host.plain(batch.images).pooled
            pools = [placed.part.common for placed in context.parts(self.method, [batch.task])]
            terms += [1 - pool.similarities(query, self.method.chosen)[0].mean() for pool in pools]
        return self.method.pull * torch.stack(terms).mean() if terms else None


# --- a closed-form head


class Ridge(Head):
    """Ridge regression on random features: ``h = relu(x R)``, ``W = (H^T H + l I)^-1 H^T Y``."""

    projection: Tensor
    gram: Tensor
    sums: Tensor
    weight: Tensor

    def __init__(self, info: FeaturesInfo, classes: Sequence[str], width: int) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.register_buffer("projection", torch.randn(info.pooled, width))
        self.register_buffer("gram", torch.zeros(width, width))
        self.register_buffer("sums", torch.zeros(len(self.classes), width))
        self.register_buffer("weight", torch.zeros(len(self.classes), width))

    def lift(self, features: Features) -> Tensor:
        return (features.pooled @ self.projection).relu()

    def forward(self, features: Features) -> Tensor:
        return self.lift(features) @ self.weight.T

    def extend(self, classes: Sequence[str], info: FeaturesInfo | None = None) -> None:
        new = tuple(name for name in classes if name not in self.classes)
        self.classes += new
        self.sums, self.weight = (F.pad(rows, (0, 0, 0, len(new))) for rows in (self.sums, self.weight))

    def add(self, features: Features, targets: Targets) -> None:
        lifted = self.lift(features)
        self.gram += lifted.T @ lifted
        self.sums.index_add_(0, positions(self, targets).to(lifted.device), lifted)

    def solve(self, ridge: float) -> None:
        eye = torch.eye(len(self.gram), dtype=self.gram.dtype, device=self.gram.device)
        self.weight.copy_(torch.linalg.solve(self.gram + ridge * eye, self.sums.T).T)


@dataclass
class RandomProjection(Method):
    """Nothing trains: class statistics of the frozen features, solved in closed form (RanPAC without adaptation)."""

    declares = Declarations(
        category="continual",
        mergeable=True,
        accepts=("cls",),
        paper="RanPAC, NeurIPS 2023, arXiv 2307.02251",
    )

    width: Count = 128
    ridge: Positive = 10.0

    def part(self, site: Site) -> Part | None:
        return None

    def classifier(self, info: FeaturesInfo, classes: Sequence[str]) -> nn.Module:
        return Ridge(info, classes, self.width)

    def routine(self) -> ClosedForm:
        return ClosedForm(self)


@dataclass(eq=False)
class ClosedForm(Routine[RandomProjection]):
    """Adds a stage's statistics at its beginning: the features they come from never change."""

    @torch.no_grad()
    def begin_stage(self, context: Context) -> None:
        for task, images, targets in context.batches(train=False):
            context.host.head_of(task).add(context.host(images, task), targets)

    def settle(self, context: Context) -> None:
        for task in context.tasks:
            context.host.head_of(task).solve(self.method.ridge)


# --- an isolated ensemble


class Subspaces(Head):
    """A classifier of one task's features, and a prototype ``(T, C)`` of each class in the subspace of every task."""

    prototypes: Tensor

    def __init__(self, info: FeaturesInfo, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.weight = nn.Parameter(torch.randn(len(self.classes), info.pooled) * 0.01)
        self.register_buffer("prototypes", torch.zeros(len(self.classes), 1, info.pooled))

    def forward(self, features: Features) -> Tensor:
        return F.linear(features.pooled, self.weight)

    def extend(self, classes: Sequence[str], info: FeaturesInfo | None = None) -> None:
        new = tuple(name for name in classes if name not in self.classes)
        if new:
            self.classes += new
            rows = torch.randn(len(new), self.weight.shape[1]).to(self.weight) * 0.01
            self.weight = nn.Parameter(torch.cat([self.weight.detach(), rows]))
            self.prototypes = F.pad(self.prototypes, (0, 0, 0, 1, 0, len(new)))

    def nearest(self, pooled: Tensor) -> Tensor:
        """``pooled (B, T, C)`` to the sum of cosines over subspaces ``(B, K)``."""
        return torch.einsum("btc,ktc->bk", F.normalize(pooled, dim=-1), F.normalize(self.prototypes, dim=-1))


def in_all_subspaces(host: Passes, images: Tensor, head: nn.Module) -> Tensor:
    """The features ``(B, T, C)`` that the parts of each task with this head give, one pass each."""
    tasks = [task for task in host.tasks if host.head_of(task) is head]
    return torch.stack([host(images, task).pooled for task in tasks], 1)


@dataclass
class IsolatedEnsemble(Method):
    """An adapter for each task; where the task is not told, prototypes in all of their subspaces vote (EASE)."""

    declares = Declarations(
        category="continual",
        passes_per_task=True,
        accepts=("cls",),
        paper="EASE, CVPR 2024, arXiv 2403.12030",
    )

    at: str = "mlp"
    hidden: Count = 4

    def part(self, site: Site) -> Part:
        return ParallelBottleneck(site.width, self.hidden, scale=0.1, dropout=0.0, norm=False)

    def classifier(self, info: FeaturesInfo, classes: Sequence[str]) -> nn.Module:
        return Subspaces(info, classes)

    def answer(self, host: Passes, images: Tensor, task: str | None, head: Any) -> Tensor:
        return head(host(images, task)) if task else head.nearest(in_all_subspaces(host, images, head))

    def routine(self) -> Prototypes:
        return Prototypes(self)


@dataclass(eq=False)
class Prototypes(Routine[IsolatedEnsemble]):
    """Means of the stage's classes in every subspace; those of older classes in new ones are put together from them."""

    def adjust(self, context: Context, task: str, outputs: Any, targets: Targets) -> tuple[Any, Targets]:
        return local(context.host.head_of(task), outputs, targets), targets

    def settle(self, context: Context) -> None:
        for head in dict.fromkeys(context.host.head_of(task) for task in context.tasks):
            tasks = [task for task in context.tasks if context.host.head_of(task) is head]
            sums, counts = torch.zeros_like(head.prototypes), head.prototypes.new_zeros(len(head.classes))
            for _, images, targets in context.batches(train=False, tasks=tasks):
                rows = positions(head, targets).to(counts.device)
                sums.index_add_(0, rows, in_all_subspaces(context.host, images, head))
                counts.index_add_(0, rows, torch.ones_like(rows, dtype=counts.dtype))
            now, before = counts > 0, head.prototypes.shape[1] - len(tasks)
            head.prototypes[now] = sums[now] / counts[now, None, None]
            if before:
                old, new = (F.normalize(head.prototypes[rows, :before].flatten(1), dim=-1) for rows in (~now, now))
                shares = (old @ new.T).softmax(-1)
                head.prototypes[~now, before:] = torch.einsum("on,ntc->otc", shares, head.prototypes[now, before:])


# --- a regulariser


@dataclass
class Consolidation(Method):
    """Shared parameters that mattered for earlier tasks are held near where those left them (EWC)."""

    declares = Declarations(
        category="continual",
        mergeable=True,
        paper="Overcoming catastrophic forgetting in neural networks, PNAS 2017, arXiv 1612.00796",
    )

    strength: NonNegative = 100.0

    def part(self, site: Site) -> Part | None:
        return None

    def routine(self) -> Importance:
        return Importance(self)


@dataclass(eq=False)
class Importance(Routine[Consolidation]):
    """The diagonal Fisher information of all earlier tasks, summed, and the values they ended with."""

    fisher: dict[str, Tensor] = field(default_factory=dict)
    anchor: dict[str, Tensor] = field(default_factory=dict)

    def penalty(self, context: Context) -> Tensor | None:
        shared = context.host.shared_parameters()
        terms = [(self.fisher[n] * (p - self.anchor[n]).square()).sum() for n, p in shared.items() if n in self.fisher]
        return self.method.strength / 2 * torch.stack(terms).sum() if terms else None

    def end_stage(self, context: Context) -> None:
        shared, batches = context.host.shared_parameters(), 0
        sums = {name: torch.zeros_like(parameter) for name, parameter in shared.items()}
        for batch in context.batches(train=False) if shared else ():
            batches += 1
            gradients = torch.autograd.grad(context.loss(*batch), list(shared.values()), allow_unused=True)
            for name, gradient in zip(shared, gradients, strict=True):
                sums[name] += 0 if gradient is None else gradient.square()
        for name, parameter in shared.items():
            self.fisher[name] = self.fisher.get(name, 0) + sums[name] / max(batches, 1)
            self.anchor[name] = parameter.detach().clone()

    def state(self) -> dict[str, Tensor]:
        fisher = {f"fisher/{name}": tensor for name, tensor in self.fisher.items()}
        return fisher | {f"anchor/{name}": tensor for name, tensor in self.anchor.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.fisher, self.anchor = (
            {key.removeprefix(start): tensor for key, tensor in state.items() if key.startswith(start)}
            for start in ("fisher/", "anchor/")
        )


# --- replay


@dataclass
class Replay(Method):
    """A few earlier samples beside the new ones; with ``dark``, what the model said of them too (ER, DER++)."""

    declares = Declarations(
        category="continual",
        mergeable=True,
        accepts=("cls",),
        paper="Dark Experience for General Continual Learning, NeurIPS 2020, arXiv 2004.07211",
    )

    bytes: Count = 200_000
    draws: Count = 8
    replayed: NonNegative = 1.0
    dark: NonNegative = 0.0

    def part(self, site: Site) -> Part | None:
        return None

    def routine(self) -> Reservoir:
        return Reservoir(self)


@dataclass(eq=False)
class Reservoir(Routine[Replay]):
    """Every sample met has the same chance to be in memory."""

    met: int = 0

    def __post_init__(self) -> None:
        self.memory.budget = self.method.bytes

    def trains(self, context: Context) -> Sequence[str]:
        return context.seen

    def penalty(self, context: Context) -> Tensor | None:
        earlier = [key for key in self.memory if key[0] not in context.tasks]
        random = Random(f"{context.seed}/{context.stage}/{context.step}")
        chosen, terms = random.sample(earlier, min(self.method.draws, len(earlier))), []
        for task, images, targets in context.load(chosen, context.step):
            terms.append(self.method.replayed * context.loss(task, images, targets))
            if self.method.dark:
                then = torch.stack([self.memory.extra(key)["logits"] for key in chosen if key[0] == task])
                now = context.host.predict(images, task)[:, : then.shape[1]]
                terms.append(self.method.dark * F.mse_loss(now, then.to(now.device)))
        return torch.stack(terms).sum() if terms else None

    def after_step(self, context: Context) -> None:
        for batch in context.batch:
            for key, logits in zip(batch.keys, batch.outputs, strict=True):
                self.offer(key, {"logits": logits} if self.method.dark else {}, context.seed)

    def offer(self, key: Key, extra: dict[str, Tensor], seed: int) -> None:
        self.met += 1
        kept = list(self.memory)
        if key not in self.memory and not self.memory.room(**extra):
            place = Random(f"{seed}/{self.met}").randrange(self.met)
            if place < len(kept):
                self.memory.remove(kept[place])
        if key not in self.memory and self.memory.room(**extra):
            self.memory.add(key, **extra)

    def state(self) -> dict[str, Tensor]:
        return {"met": torch.tensor(self.met)}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.met = int(state.get("met", 0))


METHODS = {
    "prompt-pool": PromptPool,
    "random-projection": RandomProjection,
    "isolated-ensemble": IsolatedEnsemble,
    "consolidation": Consolidation,
    "replay": Replay,
}


class Plugin:
    @hookimpl
    def register_methods(self) -> dict[str, str]:
        return {name: f"{__name__}:{method.__name__}" for name, method in METHODS.items()}
