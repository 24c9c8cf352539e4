"""CODA-Prompt (CVPR 2023, arXiv 2211.13218): prompts that are weighted sums of components, a share of them for a stage.

With ``q`` the plain backbone's features of an image, each of the first blocks has components ``P_m (p, d)``, keys
``K_m`` and attentions ``A_m (d,)``: ``alpha_m = cos(q * A_m, K_m)`` and ``p = sum_m alpha_m P_m`` over the components
met so far; its halves are further keys and values of the attention. Of ``M`` components stage ``t`` of ``T`` trains
``M / T``, which start orthonormal to the earlier ones (Gram-Schmidt, as far as the width allows); earlier ones act,
and never change. The loss is ``CE(current classes) + ortho sum_B |B B^T - 1|`` over ``K``, ``A`` and the flattened
``P`` of every block, where ``|.|`` is the mean square, as in the released code (the paper writes a norm), and
``ortho`` the paper's .1, which that code sets to 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtpeft.api import (
    SHARED,
    Context,
    Count,
    Declarations,
    Features,
    KeyValuePart,
    Method,
    NonNegative,
    Passes,
    Route,
    Routine,
    Site,
    Targets,
    UsageError,
    local_logits,
)


class ComponentsMet(nn.Module):
    """Which components act (``met``) and which of them train (``current``), each ``(M,)``; at first all do."""

    met: Tensor
    current: Tensor

    def __init__(self, components: int) -> None:
        super().__init__()
        for name in ("met", "current"):
            self.register_buffer(name, torch.ones(components, dtype=torch.bool))


class Components(KeyValuePart):
    """``prompts (M, p, d)`` with ``keys`` and ``attentions (M, d)``."""

    def __init__(self, components: int, tokens: int, width: int) -> None:
        super().__init__()
        self.prompts = nn.Parameter(torch.rand(components, tokens, width))
        self.keys, self.attentions = (nn.Parameter(torch.rand(components, width)) for _ in "KA")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        query = self.given("query")
        keys, attentions, prompts = self.held()
        asked = (x.mean(1) if query is None else query)[:, None] * attentions  # (B, M, d)
        weights = F.cosine_similarity(asked, keys[None], dim=-1) * self.common.met
        key, value = torch.einsum("bm,mpd->bpd", weights, prompts).chunk(2, 1)
        return key, value

    def held(self) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, attentions and prompts; no gradient reaches those of other stages."""
        keys, attentions, prompts = (
            torch.where(self.common.current.view(-1, *[1] * (tensor.ndim - 1)), tensor, tensor.detach())
            for tensor in (self.keys, self.attentions, self.prompts)
        )
        return keys, attentions, prompts

    def unevenness(self) -> Tensor:
        """``sum_B |B B^T - 1|`` of the components met."""
        rows = [tensor.flatten(1)[self.common.met] for tensor in self.held()]
        return torch.stack([(b @ b.T - torch.eye(len(b)).to(b)).square().mean() for b in rows]).sum()


@dataclass
class CodaPrompt(Method):
    """Prompts put together for each image from components, of which every stage trains new ones."""

    declares = Declarations(
        category="continual",
        identity_at_init=False,
        needs_task_count=True,
        inference_passes=2,
        families="ViT-like backbones whose attention is global, calls its projections and mixes no positions",
        paper="CODA-Prompt, CVPR 2023, arXiv 2211.13218",
    )

    scope: Literal["shared"] = "shared"
    at: str = "attn"
    components: Count = 100
    tokens: Count = 8
    prompted_blocks: Count = 5
    ortho: NonNegative = 0.1

    def __post_init__(self) -> None:
        self.require(
            self.tokens % 2 == 0, f"tokens is {self.tokens}, and half are keys", "set tokens to an even number"
        )

    def owners(self, task: str | None, seen: Sequence[str]) -> tuple[str, ...]:
        return (SHARED,)

    def common(self, sites: Sequence[Site]) -> nn.Module:
        return ComponentsMet(self.components)

    def part(self, site: Site) -> KeyValuePart | None:
        if site.block is None or site.block >= self.prompted_blocks:
            return None
        return Components(self.components, self.tokens, site.width)

    def encode(self, host: Passes, images: Tensor, route: Route) -> Features:
        return host.run(images, route, given={"query": host.plain(images).pooled})

    def routine(self) -> NewComponents:
        return NewComponents(self)


@dataclass(eq=False)
class NewComponents(Routine[CodaPrompt]):
    """Gives each stage its share of the components, and keeps the others as they are.

    Attributes:
        others: trained tensors as they were before the stage: weight decay moves rows without a gradient too.
    """

    others: dict[nn.Parameter, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def begin_stage(self, context: Context) -> None:
        first, stop = self._share(context)
        for part in self._parts(context):
            place = torch.arange(self.method.components, device=part.keys.device)
            part.common.met.copy_(place < stop)
            part.common.current.copy_((first <= place) & (place < stop))
            for tensor in (part.keys, part.attentions, part.prompts):
                orthonormalise(tensor.flatten(1), first, stop)

    def _share(self, context: Context) -> tuple[int, int]:
        """The first component of the stage, and that behind its last.

        Raises:
            UsageError: where the number of stages is not known, or there are more than components.
        """
        count, stages = self.method.components, context.stages
        if stages is None or stages > count:
            known = "nobody knows how many" if stages is None else f"there are {stages}"
            raise UsageError(
                f"coda-prompt divides its {count} components among the stages, and {known}",
                hint="take a schedule that knows its stages, and at least one component for each",
            )
        return count * context.stage // stages, count * (context.stage + 1) // stages

    def begin_update(self, context: Context) -> bool:
        self.others = self.others or {p: p.detach().clone() for part in self._parts(context) for p in part.parameters()}
        return False

    def adjust(self, context: Context, task: str, outputs: Any, targets: Targets) -> tuple[Any, Targets]:
        return local_logits(context, task, outputs), targets

    def penalty(self, context: Context) -> Tensor | None:
        terms = [part.unevenness() for part in self._parts(context)]
        return self.method.ortho * torch.stack(terms).sum() if terms else None

    @torch.no_grad()
    def after_step(self, context: Context) -> None:
        for part in self._parts(context):
            for parameter in part.parameters():
                parameter[~part.common.current] = self.others[parameter][~part.common.current]

    def end_stage(self, context: Context) -> None:
        self.others = {}

    def _parts(self, context: Context) -> list[Components]:
        return [placed.part for placed in context.parts(self.method) if isinstance(placed.part, Components)]


def orthonormalise(rows: Tensor, first: int, stop: int) -> None:
    """Make ``rows[first:stop]`` of ``(M, n)`` orthonormal, and orthogonal to those before where ``n`` has room."""
    new, old = rows[first:stop], rows[:first]
    if stop > rows.shape[1]:
        new.copy_(F.normalize(new, dim=1))
        return
    basis = torch.linalg.qr(old.T).Q  # (n, first)
    rest = new.T - basis @ (basis.T @ new.T)
    new.copy_(torch.linalg.qr(rest - basis @ (basis.T @ rest)).Q.T)
