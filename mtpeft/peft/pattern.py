"""Patterns: which sites a method's ``at`` and ``blocks`` name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from mtpeft.errors import UsageError, did_you_mean
from mtpeft.peft.sites import Site

COMMON = {
    "attn", "attn.q", "attn.k", "attn.v", "attn.qkv", "attn.kv", "attn.proj", "mlp", "mlp.fc1", "mlp.fc2", "norm1",
    "norm2", "tokens", "middle", "block", "features", "linear", "slice", "conv", "grouped-conv", "norm", "attention",
    "bias", "norm-parameter", "gain", "position", "prefix", "parameter", "patch_embed", "pos_embed", "cls_token",
    "final_norm",
}  # fmt: skip
"""Terms that some family has: beside others that match, they may match nothing."""


def select(sites: Sequence[Site], pattern: str, blocks: str = "") -> list[Site]:
    """The sites that the first matching alternative of ``pattern`` names.

    Args:
        pattern: ``attn.q attn.v | mlp.fc1 mlp.fc2 | conv``.
        blocks: empty for all, ``"0-5"``, ``"9,11"`` or ``"last:3"``; sites outside are then left out, but for
            ``features`` beside others, which is behind all blocks.

    Raises:
        UsageError: if nothing matches, or a term of that alternative names nothing; it lists what there is.
    """
    count = len(sites[0].model.blocks) if sites else 0
    chosen = _block_set(blocks, count) if blocks else None
    pool = [s for s in sites if chosen is None or s.block in chosen or "features" in s.tags]
    for alternative in pattern.split("|"):
        terms = alternative.split()
        found = [site for site in pool if any(_matches(site, term) for term in terms)]
        if found and (chosen is None or any(site.block is not None for site in found)):
            _refuse_unknown(terms, sites)
            return found
    where = f'in blocks "{blocks}"' if blocks else "of this backbone"
    raise UsageError(f'no site {where} matches "{pattern}"', hint=did_you_mean(pattern, vocabulary(pool)))


def _refuse_unknown(terms: Sequence[str], sites: Sequence[Site]) -> None:
    """A term is not dropped because another one matches."""
    for term in terms:
        if term not in COMMON and not any(_matches(site, term) for site in sites):
            raise UsageError(f'no site of this backbone matches "{term}"', hint=did_you_mean(term, vocabulary(sites)))


def vocabulary(sites: Sequence[Site]) -> list[str]:
    """The terms a pattern may use on these sites: names without block numbers, and tags."""
    names = {re.sub(r"^blocks\.\d+\.?", "", s.name) for s in sites if "parameter" not in s.tags}
    return sorted((names | {tag for s in sites for tag in s.tags}) - {""})


def _matches(site: Site, term: str) -> bool:
    if term == site.name or term in site.tags or fnmatchcase(site.name, term):
        return True
    inner = re.sub(r"^blocks\.\d+\.", "", site.name) if site.block is not None else ""
    return inner == term or inner.endswith("." + term) or re.sub(r"_[gx]$", "", inner) == term


def _block_set(text: str, count: int) -> set[int]:
    """``"0-5"``, ``"9,11"``, ``"last:3"`` to block indices."""
    try:
        if text.startswith("last:"):
            ranges = [range(max(count - int(text[5:]), 0), count)]
        else:
            pairs = [part.partition("-") for part in text.split(",")]
            ranges = [range(int(low), int(high if dash else low) + 1) for low, dash, high in pairs]
    except ValueError:
        raise UsageError(f'"{text}" names no blocks', hint='write "0-5", "9,11" or "last:3"') from None
    if not all(ranges):
        raise UsageError(f'blocks "{text}" name a range without blocks', hint='write the lower one first: "2-5"')
    if max(numbers.stop for numbers in ranges) > count:
        raise UsageError(
            f'blocks "{text}" are outside this backbone, which has {count}', hint=f"blocks are 0 to {count - 1}"
        )
    return {index for numbers in ranges for index in numbers}
