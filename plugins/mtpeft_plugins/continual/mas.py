"""MAS (ECCV 2018, arXiv 1711.09601): numbers to which the outputs are sensitive move little. No labels are needed.

``L + strength * sum_i Omega_i (theta_i - theta*_i)^2`` with ``Omega_i`` the mean over samples of
``|d ||F(x)||^2 / d theta_i|``, ``F`` being all numbers that the task's head gives; over stages ``Omega`` is summed. A
method without parts: ``lora+mas``. New rows of a growing head are free.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtpeft.api import Context, Declarations, Targets
from mtpeft_plugins.continual._anchors import Anchored, AnchoringMethod, mean_over_samples


@dataclass
class Mas(AnchoringMethod):
    """Draws trained numbers back to where earlier stages left them, by the sensitivity of the outputs."""

    declares = Declarations(
        category="continual",
        mergeable=True,
        families="all",
        paper="Memory Aware Synapses, ECCV 2018, arXiv 1711.09601",
    )

    def routine(self) -> SensitivityAnchors:
        return SensitivityAnchors(self)


class SensitivityAnchors(Anchored[Mas]):
    """Weighs by absolute gradients of the squared outputs."""

    def weigh(self, context: Context, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        def energy(task: str, images: Tensor, targets: Targets) -> Tensor:
            outputs = context.host.predict(images, task)
            return torch.stack([numbers.square().sum() for numbers in _numbers(outputs)]).sum()

        return mean_over_samples(context, parameters, energy, Tensor.abs, self.method.every)


def _numbers(outputs: Any) -> Iterator[Tensor]:
    """Every tensor of a head's outputs that a gradient can come from."""
    if isinstance(outputs, Tensor):
        yield from (outputs,) if outputs.requires_grad else ()
    elif is_dataclass(outputs):
        yield from _numbers([getattr(outputs, field.name) for field in fields(outputs)])
    elif isinstance(outputs, Mapping | list | tuple):
        for value in outputs.values() if isinstance(outputs, Mapping) else outputs:
            yield from _numbers(value)
