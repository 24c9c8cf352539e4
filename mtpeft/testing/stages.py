"""Two stages of a case, as a run makes them: tasks met one after the other, whose head grows if they share one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtpeft.peft.host import Host
from mtpeft.peft.method import Method, must_be_told
from mtpeft.peft.parts import LowRankPart, zeros
from mtpeft.peft.sites import Site
from mtpeft.testing.case import STAGED, Case
from mtpeft.testing.training import Training, batch

STEPS = 2
"""Updates of a stage."""
FIRST, SECOND = STAGED


class Factors(LowRankPart):
    def __init__(self, site: Site) -> None:
        super().__init__()
        self.A, self.B = nn.Parameter(torch.randn(site.down_shape(2)) / 5), zeros(site.out_features, 2)

    def factors(self) -> tuple[Tensor, Tensor, float]:
        return self.A, self.B, 1.0


@dataclass
class Companion(Method):
    """Something that trains, beside a method without parts of its own (a regulariser, replay)."""

    at: str = "attn.q | mlp.fc1 | conv"

    def part(self, site: Site) -> LowRankPart:
        return Factors(site)


class Stages:
    """A host that meets the tasks of `STAGED` one by one.

    Attributes:
        group: they share one head, and testing does not tell them apart; where the method must be told, each has its
            own.
        training: of the stage that began last.
    """

    training: Training

    def __init__(self, case: Case, *, group: bool | None = None, seed: int = 0) -> None:
        method = case.copy()
        beside = [] if method.at else [("companion", Companion())]
        torch.manual_seed(seed)
        self.case, self.seed, self.host = case, seed, Host(case.backbone(), [*beside, (case.name, method)])
        self.group = not must_be_told(method, list(STAGED)) if group is None else group
        self.host.eval()

    def meet(self, task: str) -> None:
        """Give a task its parts, and a head, or more rows in that of its group."""
        torch.manual_seed(len(STAGED) * self.seed + list(STAGED).index(task))
        head, classes = "group" if self.group else task, STAGED[task]
        if task not in self.host.tasks:
            self.host.add_task(task)
        if head not in self.host.heads:
            self.host.add_head(head, self.case.head(self.host, classes), group=self.group)
        else:
            self.host.heads[head].extend(classes, self.host.info)
        self.host.bind_head(task, head)

    def begin(self, task: str) -> None:
        """A stage begins."""
        self.meet(task)
        self.training = self.stage(task)
        self.training.begin()

    def stage(self, task: str) -> Training:
        """The training of a task, about to begin."""
        index = list(STAGED).index(task)
        return Training(self.case, self.host, [task], STEPS, 1e-2, stage=index, stages=len(STAGED))

    def update(self) -> None:
        """One update; dropout and the like draw the same in a resumed training."""
        torch.manual_seed(self.training.context.step)
        self.training.update()

    def run(self, task: str) -> None:
        """A whole stage."""
        self.begin(task)
        for _ in range(STEPS):
            self.update()
        self.training.end()

    @torch.no_grad()
    def answers(self, task: str) -> Tensor:
        """Outputs for the task's own batch, in evaluation."""
        self.host.eval()
        return self.host.predict(batch(self.case, self.host, task)[1], task)
