"""How a backbone was before a host took it: what `Host.detach` gives back."""

from __future__ import annotations

from typing import Any

import timm.layers
from torch import nn

from mtpeft.errors import NotApplicable


class OriginalState:
    """Gradient flags, modes and checkpointing of a backbone; weights never change in value.

    Args:
        backbone: as it is now.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone = backbone
        self.flags = {name: parameter.requires_grad for name, parameter in backbone.named_parameters()}
        self.modes = {path: module.training for path, module in backbone.named_modules()}
        # where timm says whether blocks are recomputed, and what it said before
        self.recomputes = {m: m.grad_checkpointing for m in backbone.modules() if "grad_checkpointing" in vars(m)}

    @property
    def training(self) -> bool:
        return self.modes[""]

    def restore(self) -> None:
        """Everything as it was; hooks and parametrizations must be gone."""
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(self.flags[name])
        for path, module in self.backbone.named_modules():
            module.training = self.modes[path]
        for module, recomputes in self.recomputes.items():
            module.grad_checkpointing = recomputes

    def recompute(self, enable: bool) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations.

        Raises:
            NotApplicable: where the backbone does not support it.
        """
        backbone: Any = self.backbone
        try:
            backbone.set_grad_checkpointing(enable)
        except (AssertionError, AttributeError):
            if enable:
                family = type(self.backbone).__name__
                raise NotApplicable(f"{family} does not support gradient checkpointing", hint="leave it out") from None
        self.recomputing()  # refuses now what the first pass would refuse

    def recomputing(self) -> bool:
        """Whether blocks are recomputed in the backward pass, whoever asked timm for it.

        Raises:
            NotApplicable: for reentrant checkpoints, whose inputs need gradients that a frozen backbone has not.
        """
        recomputing = any(module.grad_checkpointing for module in self.recomputes)
        if recomputing and timm.layers.use_reentrant_ckpt():
            raise NotApplicable(
                "reentrant checkpoints cannot train a frozen backbone's parts", hint="unset TIMM_REENTRANT_CKPT"
            )
        return recomputing
