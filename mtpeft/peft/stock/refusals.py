"""Refusing sites and backbones on which a kind of part makes no sense, in one sentence each."""

from __future__ import annotations

from mtpeft.errors import NotApplicable
from mtpeft.peft.sites import Site


def refuse_reshaped(site: Site) -> None:
    """Refuses what stands beside a module, ``y + f(x)``, where input and output differ in shape.

    Raises:
        NotApplicable: where that is so.
    """
    if not site.keeps_shape:
        raise NotApplicable(
            f"what stands beside {site.name} needs one shape before and behind, and {site.model.family} changes it "
            "there",
            hint='choose other sites with at, such as at = "mlp"',
        )


def refuse_reordered(site: Site) -> None:
    """Refuses convolutions over tokens on backbones that reorder their tokens.

    Raises:
        NotApplicable: on Hiera, whose tokens lie in the order of its mask units.
    """
    if "unroll" in site.model.modules:
        raise NotApplicable(
            f"a convolution needs tokens row by row, and {site.model.family} keeps them in mask units",
            hint="take a method without convolutions, such as adapter-plus",
        )


def refuse_convolution(site: Site, reason: str) -> None:
    """Refuses convolutions, whose weights are no matrices.

    Args:
        reason: what the method does with matrices; the first half of the sentence.

    Raises:
        NotApplicable: for a convolution.
    """
    if len(site.shape) != 2:
        raise NotApplicable(
            f"{reason}, and {site.name} is no linear layer",
            hint="take a backbone with linear layers, or a method that changes convolutions, such as lora or loha",
        )
