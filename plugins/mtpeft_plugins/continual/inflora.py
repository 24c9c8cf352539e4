"""InfLoRA (CVPR 2024, arXiv 2404.00228): each task learns in directions that earlier tasks' inputs do not have.

``W + sum_s B_s A_s`` at keys and values. Before a task is trained, ``A_t (r, in)`` is fixed: the ``r`` leading left
singular vectors of ``(I - M M^T) H``, ``H (in, n)`` being its inputs of the layer and ``M`` an orthonormal basis of
what earlier tasks' inputs span. ``B_t`` alone trains, from zero. Afterwards ``M`` grows (DualGPM) by the fewest
directions with which it has a share ``(end - start) t / T + start`` of the squared norm of ``H``, ``t`` being the stage
and ``T`` their number. Of ``M`` and its complement the smaller is kept. Two more passes over the data.

Where ours differs from the released code, which the paper does not have: it divides ``A_t`` by sqrt(3), and takes the
singular values of ``H H^T`` for those of ``H``. Shares are published for the latter: .95 to .98, by data set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mtpeft.api import (
    SHARED,
    Calibrated,
    Context,
    Count,
    Declarations,
    InputMoments,
    LowRankPart,
    NotApplicable,
    Routine,
    Share,
    Site,
    UsageError,
    recording,
    zeros,
)
from mtpeft_plugins.continual._branches import BranchingMethod, freeze_earlier


class FixedDown(LowRankPart):
    """``A (r, in)`` fixed, with orthonormal rows; ``B (out, r)`` zero."""

    A: Tensor

    def __init__(self, site: Site, rank: int) -> None:
        super().__init__()
        self.register_buffer("A", torch.linalg.qr(torch.randn(site.in_features, rank)).Q.t().contiguous())
        self.B = zeros(site.out_features, rank)

    def factors(self) -> tuple[Tensor, Tensor, float]:
        return self.A, self.B, 1.0


@dataclass
class Inflora(BranchingMethod):
    """LoRA for each task in a subspace where it does not interfere; all of them act."""

    declares = Declarations(
        category="continual",
        mergeable=True,
        needs_task_count=True,
        families="where attention has linear layers that are called",
        learning_rate=5e-4,
        paper="InfLoRA, CVPR 2024, arXiv 2404.00228",
    )

    at: str = "attn.k attn.v"
    rank: Count = 10
    start: Share = 0.95
    end: Share = 1.0

    def part(self, site: Site) -> LowRankPart:
        if site.bypassed or not isinstance(site.module, nn.Linear):
            raise NotApplicable(
                f"inflora takes the input of {site.name}, which is no linear layer that {site.model.family} calls",
                hint="choose other sites with at",
            )
        if self.rank > site.in_features:
            raise UsageError(
                f"inflora takes {self.rank} directions of the {site.in_features} inputs of {site.name}",
                hint=f"give a rank of at most {site.in_features}",
            )
        return FixedDown(site, self.rank)

    def common(self, sites: Sequence[Site]) -> nn.Module:
        return Calibrated()

    def routine(self) -> Subspaces:
        return Subspaces(self)


@dataclass(eq=False)
class Subspaces(Routine[Inflora]):
    """Chooses each task's directions, and remembers those that are taken.

    Attributes:
        taken: ``PATH/taken`` of a layer -> ``M (in, k)``, or ``PATH/free`` -> a basis of its complement.
    """

    taken: dict[str, Tensor] = field(default_factory=dict)

    def calibrate(self, context: Context) -> None:
        """Choose ``A`` for the branches of the stage that have none yet."""
        if self.method.scope != SHARED:
            freeze_earlier(context)
        for _, tasks, placed in self.branches(context):
            if not placed[0].part.common.done:
                grams = self.grams(context, tasks, placed)
                for p in placed:
                    gram = grams[p.site.path]
                    p.part.A.copy_(leading(self.basis(p.site.path, len(gram)), gram, self.method.rank).t())
                placed[0].part.common.done.fill_(True)

    def end_stage(self, context: Context) -> None:
        """Let each layer's ``M`` grow by what the stage's inputs need."""
        share = self.share(context)
        for _, tasks, placed in self.branches(context):
            for path, gram in self.grams(context, tasks, placed).items():
                self.remember(path, grown(self.basis(path, len(gram)), gram, share))

    def state(self) -> dict[str, Tensor]:
        return dict(self.taken)

    def restore(self, state: dict[str, Tensor]) -> None:
        self.taken = dict(state)

    def share(self, context: Context) -> float:
        """Of the inputs' squared norm, how much is to be taken after this stage.

        Raises:
            UsageError: where the number of stages is not known.
        """
        if context.stages is None:
            raise UsageError("inflora must know how many stages there will be", hint="take a schedule that can tell")
        return (self.method.end - self.method.start) * context.stage / context.stages + self.method.start

    def branches(self, context: Context) -> Iterator[tuple[str, list[str], list[Any]]]:
        """``(owner, its tasks, its parts)`` of what this stage trains."""
        placed = context.host.parts_of(self.method, context.tasks)
        for owner in dict.fromkeys(p.owner for p in placed):
            tasks = [task for task in context.tasks if owner in (task, SHARED)]
            if tasks:
                yield owner, tasks, [p for p in placed if p.owner == owner]

    @torch.no_grad()
    def grams(self, context: Context, tasks: Sequence[str], placed: Sequence[Any]) -> dict[str, Tensor]:
        """``H H^T (in, in)`` of each layer, by its path, over the data of ``tasks``."""
        moments = {p.site.path: (p.site.module, InputMoments(p.site.in_features)) for p in placed}
        with recording(moments.values()):
            for task, images, _ in context.batches(tasks=tasks):
                context.host(images, task)
        return {path: moment.gram.double().cpu() for path, (_, moment) in moments.items()}

    def basis(self, path: str, width: int) -> Tensor:
        """``M (in, k)`` of a layer."""
        if f"{path}/free" in self.taken:
            return complement(self.taken[f"{path}/free"].double())
        return self.taken.get(f"{path}/taken", torch.zeros(width, 0)).double()

    def remember(self, path: str, basis: Tensor) -> None:
        """Keep ``M``, or its complement where that is smaller."""
        width, size = basis.shape
        self.taken.pop(f"{path}/taken", None)
        self.taken.pop(f"{path}/free", None)
        name, kept = ("taken", basis) if 2 * size <= width else ("free", complement(basis))
        self.taken[f"{path}/{name}"] = kept.float().contiguous()


def outside(basis: Tensor, gram: Tensor) -> Tensor:
    """``(I - M M^T) H H^T (I - M M^T)``."""
    rest = torch.eye(len(gram), dtype=gram.dtype) - basis @ basis.t()
    return rest @ gram @ rest


def leading(basis: Tensor, gram: Tensor, rank: int) -> Tensor:
    """The ``rank`` leading left singular vectors ``(in, r)`` of ``(I - M M^T) H``; zeros where it has fewer."""
    _, vectors = torch.linalg.eigh(outside(basis, gram))
    found = vectors.flip(1)[:, :rank]
    return found - basis @ (basis.t() @ found)


def grown(basis: Tensor, gram: Tensor, share: float) -> Tensor:
    """``M`` and the fewest directions with which it has ``share`` of the squared norm of ``H``."""
    total, inside = gram.trace(), (basis.t() @ gram @ basis).trace()
    values, vectors = torch.linalg.eigh(outside(basis, gram))
    values, vectors = values.flip(0), vectors.flip(1)
    missing = inside + values.cumsum(0) - values < share * total - 1e-9 * total
    count = int((missing & (values > 1e-9 * total)).sum())
    return torch.linalg.qr(torch.cat([basis, vectors[:, :count]], 1)).Q


def complement(basis: Tensor) -> Tensor:
    """An orthonormal basis ``(n, n - k)`` of what is orthogonal to ``basis (n, k)``."""
    return torch.linalg.qr(basis, mode="complete").Q[:, basis.shape[1] :]
