"""What cannot be right is refused in one sentence: a part at its site, or beside the other parts of a tensor."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mtpeft.errors import NotApplicable
from mtpeft.peft.mounts import PartAtSite
from mtpeft.peft.parts import InputPart, KeyValuePart, LowRankPart, OutputPart, TokenPart, WeightPart, sees_input
from mtpeft.peft.sites import TensorRef


def refuse(placed: PartAtSite) -> None:
    """Refuse a part that cannot be right at its site.

    Raises:
        NotApplicable: in one sentence.
    """
    part, site, who = placed.part, placed.site, placed.method
    model = site.model
    if isinstance(part, WeightPart):
        if site.tensor is None:
            raise NotApplicable(
                f"{who} changes weights, and {site.name} has none", hint="give it a linear or convolution"
            )
        if isinstance(part, LowRankPart):
            _refuse_low_rank(part, placed)
    elif isinstance(part, (InputPart, OutputPart)):
        if isinstance(part, OutputPart) and "middle" in site.tags:
            raise NotApplicable(
                f"{who} changes a module's output, and {site.name} is a place in the stream",
                hint="give it an input part",
            )
        if site.bypassed:
            raise NotApplicable(
                f"{who} needs {site.name} to be called, and {model.family} reads its weight without calling it"
            )
        if isinstance(part, InputPart) and "slice" in site.tags:
            raise NotApplicable(
                f"{who} changes inputs, and {site.name} shares its input with the other rows of a fused projection"
            )
    elif isinstance(part, TokenPart):
        if "tokens" not in site.tags:
            raise NotApplicable(f"{who} gives tokens, which {site.name} cannot take", hint='use at = "tokens"')
        if model.positions == "relative":
            raise NotApplicable(
                f"{who} adds tokens, and the relative positions of {model.family} have no place for them"
            )
    elif isinstance(part, KeyValuePart):
        _refuse_keys_values(placed)


def _refuse_low_rank(part: LowRankPart, placed: PartAtSite) -> None:
    site, who = placed.site, placed.method
    if "grouped-conv" in site.tags:
        raise NotApplicable(
            f"{who} is low-rank, and the convolution {site.name} is grouped", hint="choose other sites with at"
        )
    if sees_input(part) and (site.bypassed or not isinstance(site.module, nn.Linear)):
        raise NotApplicable(
            f"{who} looks at the input of {site.name}, which is no linear layer that {site.model.family} calls",
            hint="choose other sites with at, such as mlp.fc1 mlp.fc2",
        )


def refuse_beside_others(placed: Sequence[PartAtSite]) -> None:
    """Parts of a weight that is computed as a whole: none can look at the input."""
    seeing = next((p for p in placed if sees_input(p.part)), None)
    other = next((p for p in placed if not isinstance(p.part, LowRankPart)), None)
    if seeing is not None and other is not None:
        raise NotApplicable(
            f"{seeing.method} looks at the input of {seeing.site.name}, whose weight {other.method} changes too",
            hint="give one of them other sites with at",
        )


def refuse_replaced(placed: Sequence[PartAtSite], path: str, name: str) -> None:
    """Parts of one tensor, in the order they apply: none replaces rows that another has changed before."""
    for index, later in enumerate(placed):
        if not isinstance(later.part, WeightPart) or not later.part.replaces:
            continue
        lost = next((p for p in placed[:index] if _overlap(_refs(p, path, name), _refs(later, path, name))), None)
        if lost is not None:
            both = isinstance(lost.part, WeightPart) and lost.part.replaces
            raise NotApplicable(
                f"{later.method} puts a tensor of its own in the place of {later.site.name}, "
                f"so what {lost.method} makes of it is lost",
                hint="leave one of them out" if both else f"name {later.method} first, before {lost.method}",
            )


def _refs(placed: PartAtSite, path: str, name: str) -> list[TensorRef]:
    """The rows of a tensor that a part changes."""
    return [ref for ref in (placed.site.rows, *placed.site.bias) if (ref.path, ref.name) == (path, name)]


def _overlap(some: Sequence[TensorRef], others: Sequence[TensorRef]) -> bool:
    return any(a.start < b.stop and b.start < a.stop for a in some for b in others)


def _refuse_keys_values(placed: PartAtSite) -> None:
    site, model = placed.site, placed.site.model
    if "attention" not in site.tags:
        raise NotApplicable(
            f"{placed.method} gives keys and values, which {site.name} cannot take", hint='use at = "attn"'
        )
    projections = {f"{site.path}.qkv", f"{site.path}.k_proj", f"{site.path}.kv"}
    if model.positions != "none" or not model.tokens or not projections & model.called:
        raise NotApplicable(
            f"{placed.method} adds keys and values, and the attention of {model.family} mixes positions or windows"
        )
