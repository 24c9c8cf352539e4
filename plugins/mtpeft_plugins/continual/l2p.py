"""L2P, learning to prompt (CVPR 2022, arXiv 2112.08654): each image takes its prompts from one pool, by their keys.

With ``q`` the plain backbone's features of an image and ``gamma`` the cosine distance to the keys ``k_m (d,)``, the
nearest ``N`` of ``M`` prompts ``P_m (p, d)`` stand behind the prefix tokens from the first block on. The head sees the
mean of what the last block and the final norm make of them. The loss is ``CE(current classes) + pull sum_N gamma(q,
k_n)``. Prompts and keys start uniform in [0, .01], as in the authors' code.

Where the authors' code lets a whole batch vote for its prompts, every image has its own here, as in the paper: a vote
tells the task of batches that are sorted by task. The paper's optional penalty on how often prompts were used is left
out, as in its experiments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    Method,
    NonNegative,
    NotApplicable,
    Part,
    Passes,
    Route,
    Routine,
    SidePart,
    Site,
    Targets,
    TokenPart,
    local_logits,
)


class PromptPool(nn.Module):
    """``prompts (M, p, d)``, each with a key: ``keys (M, d)``."""

    def __init__(self, prompts: int, tokens: int, width: int, chosen: int) -> None:
        super().__init__()
        self.chosen = chosen
        self.prompts = nn.Parameter(torch.rand(prompts, tokens, width) / 100)
        self.keys = nn.Parameter(torch.rand(prompts, width) / 100)

    def nearest(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines ``(B, N)`` of ``query (B, d)`` with the nearest keys, and their indices."""
        cosines = F.normalize(query, dim=-1) @ F.normalize(self.keys, dim=-1).T
        return cosines.topk(self.chosen)

    def of(self, query: Tensor) -> Tensor:
        """The prompts of each image ``(B, N p, d)``."""
        return self.prompts[self.nearest(query)[1]].flatten(1, 2)


class PooledPrompts(TokenPart):
    """The chosen prompts at the first block; behind it, what the block before made of them."""

    def forward(self, x: Tensor) -> Tensor:
        if "prompts" in self.scratch:
            return self.scratch["prompts"]
        query = self.given("query")
        return self.common.of(x.mean(1) if query is None else query)

    def returned(self, tokens: Tensor) -> None:
        self.scratch["prompts"] = tokens


class MeanPrompt(SidePart):
    """The mean of the prompts behind the last block, in the place of the pooled vector."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        norms = [site.model.modules[name] for name in ("norm", "fc_norm") if name in site.model.modules]
        self.__dict__["norms"] = norms  # frozen, and not the part's own

    def forward(self, features: Features) -> Features:
        prompts = self.scratch["prompts"]
        for norm in self.__dict__["norms"]:
            prompts = norm.forward(prompts)
        return replace(features, pooled=prompts.mean(1))


@dataclass
class L2p(Method):
    """A pool of prompts, of which each image takes those whose keys are nearest to its plain features."""

    declares = Declarations(
        category="continual",
        identity_at_init=False,
        inference_passes=2,
        families="ViT-like backbones without relative positions and with a final norm",
        learning_rate=1.875e-3,
        paper="Learning to Prompt for Continual Learning, CVPR 2022, arXiv 2112.08654",
    )

    scope: Literal["shared"] = "shared"
    at: str = "tokens features"
    prompts: Count = 10
    tokens: Count = 5
    chosen: Count = 5
    pull: NonNegative = 0.1

    def __post_init__(self) -> None:
        message = f"each image takes {self.chosen} prompts, and the pool holds {self.prompts}"
        self.require(self.chosen <= self.prompts, message, "set chosen to at most prompts")

    def owners(self, task: str | None, seen: Sequence[str]) -> tuple[str, ...]:
        return (SHARED,)

    def common(self, sites: Sequence[Site]) -> nn.Module:
        inside = [site for site in sites if "tokens" in site.tags]
        if not inside or len(inside) == len(sites) or "norm" not in sites[0].model.modules:
            raise NotApplicable("l2p gives tokens to blocks and reads them behind the final norm, and one is missing")
        return PromptPool(self.prompts, self.tokens, inside[0].width, self.chosen)

    def part(self, site: Site) -> Part:
        return PooledPrompts() if "tokens" in site.tags else MeanPrompt(site)

    def encode(self, host: Passes, images: Tensor, route: Route) -> Features:
        return host.run(images, route, given={"query": host.plain(images).pooled})

    def routine(self) -> PulledKeys:
        return PulledKeys(self)


class PulledKeys(Routine[L2p]):
    """Pulls the chosen keys to their images' features."""

    def adjust(self, context: Context, task: str, outputs: Any, targets: Targets) -> tuple[Any, Targets]:
        return local_logits(context, task, outputs), targets

    def penalty(self, context: Context) -> Tensor | None:
        """Asks the plain backbone again: what `L2p.encode` was told lives in a pass, and passes end."""
        pools = dict.fromkeys(placed.part.common for placed in context.parts(self.method))
        queries = [context.host.plain(batch.images).pooled for batch in context.batch] if pools else []
        terms = [(1 - pool.nearest(query)[0]).sum(1).mean() for pool in pools for query in queries]
        return self.method.pull * torch.stack(terms).sum() if terms else None
