"""Balancers of three published kinds, as an author would write them: what the contract must be enough for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from mtpeft.api import Balancer


@dataclass
class Famo(Balancer):
    """As FAMO (Liu et al., NeurIPS 2023): logits follow the losses of the same batch before and after the step."""

    needs_losses_again = True

    rate: float = 0.5

    def __post_init__(self) -> None:
        self.logits: dict[str, Tensor] = {}
        self.pairs: list[tuple[dict[str, float], dict[str, float]]] = []

    def begin(self, weights: Mapping[str, float], tasks: Sequence[str]) -> None:
        super().begin(weights, tasks)
        for task in weights:
            self.logits.setdefault(task, torch.zeros(()))

    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        z = torch.stack([self.logits[task] for task in losses]).softmax(0)
        values = torch.stack(list(losses.values()))
        scale = (z / values.detach()).sum()
        return (z * values.log() / scale).sum()

    def after_step(self, losses: Mapping[str, Tensor], again: Mapping[str, Tensor]) -> None:
        self.pairs.append(({t: float(v) for t, v in losses.items()}, {t: float(v) for t, v in again.items()}))
        z = torch.stack([self.logits[task] for task in losses]).softmax(0)
        gained = torch.stack([losses[task].log() - again[task].log() for task in losses])
        for task, gradient in zip(losses, z * (gained - (z * gained).sum()), strict=True):
            self.logits[task] = self.logits[task] - self.rate * gradient

    def state(self) -> dict[str, Tensor]:
        return dict(self.logits)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.logits |= state


@dataclass
class GradNorm(Balancer):
    """As GradNorm (Chen et al., ICML 2018): weights follow the norms of each task's own gradient."""

    needs_task_gradients = True

    alpha: float = 1.5
    rate: float = 0.1

    def __post_init__(self) -> None:
        self.factors: dict[str, Tensor] = {}
        self.first: dict[str, Tensor] = {}
        self.norms: dict[str, Tensor] = {}

    def begin(self, weights: Mapping[str, float], tasks: Sequence[str]) -> None:
        super().begin(weights, tasks)
        for task in weights:
            self.factors.setdefault(task, torch.ones(()))

    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([self.factors[task] * loss for task, loss in losses.items()]).sum()

    def aggregate(self, jacobian: Tensor, tasks: Sequence[str], losses: Mapping[str, Tensor]) -> Tensor:
        self.norms = dict(zip(tasks, jacobian.norm(dim=1), strict=True))
        for task in tasks:
            self.first.setdefault(task, losses[task])
        return jacobian.sum(0)

    def after_step(self, losses: Mapping[str, Tensor], again: Mapping[str, Tensor]) -> None:
        tasks = list(self.norms)
        rates = torch.stack([losses[task] / self.first[task] for task in tasks])
        norms = torch.stack([self.norms[task] for task in tasks])
        target = norms.mean() * (rates / rates.mean()) ** self.alpha
        for task, norm, wanted in zip(tasks, norms, target, strict=True):
            slope = (norm - wanted).sign() * norm / self.factors[task]
            self.factors[task] = (self.factors[task] - self.rate * slope).clamp(min=1e-3)
        scale = len(tasks) / torch.stack([self.factors[task] for task in tasks]).sum()
        self.factors |= {task: self.factors[task] * scale for task in tasks}

    def state(self) -> dict[str, Tensor]:
        first = {f"first/{task}": value for task, value in self.first.items()}
        return {f"factor/{task}": value for task, value in self.factors.items()} | first

    def restore(self, state: Mapping[str, Tensor]) -> None:
        groups = {"factor": self.factors, "first": self.first}
        for key, value in state.items():
            group, _, task = key.partition("/")
            groups[group][task] = value


@dataclass
class GradVac(Balancer):
    """As GradVac (Wang et al., ICLR 2021): a moving target for the cosine of each pair of tasks."""

    needs_task_gradients = True

    beta: float = 0.2

    def __post_init__(self) -> None:
        self.targets: dict[tuple[str, str], Tensor] = {}

    def combine(self, losses: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([self.weights[task] * loss for task, loss in losses.items()]).sum()

    def aggregate(self, jacobian: Tensor, tasks: Sequence[str], losses: Mapping[str, Tensor]) -> Tensor:
        rows, vaccinated = dict(zip(tasks, jacobian, strict=True)), []
        for task in tasks:
            row = rows[task]
            for other in (name for name in tasks if name != task):
                row = row + self._pull(task, other, row, rows[other])
            vaccinated.append(row)
        return torch.stack(vaccinated).sum(0)

    def _pull(self, task: str, other: str, row: Tensor, towards: Tensor) -> Tensor:
        pair = (min(task, other), max(task, other))
        cosine = torch.cosine_similarity(row, towards, 0).clamp(-0.999, 0.999)
        target = self.targets.get(pair, torch.zeros(()))
        self.targets[pair] = (1 - self.beta) * target + self.beta * cosine
        if cosine >= target:
            return torch.zeros_like(row)
        bent = target * (1 - cosine**2).sqrt() - cosine * (1 - target**2).sqrt()
        return row.norm() * bent / (towards.norm().clamp(min=1e-12) * (1 - target**2).sqrt()) * towards

    def state(self) -> dict[str, Tensor]:
        return {"/".join(pair): target for pair, target in self.targets.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        for key, target in state.items():
            first, _, second = key.partition("/")
            self.targets[first, second] = target


def pairs(tasks: Sequence[str]) -> set[tuple[str, str]]:
    return {(min(pair), max(pair)) for pair in combinations(tasks, 2)}
