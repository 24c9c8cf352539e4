"""Errors of typed entries in words."""

from __future__ import annotations

from pydantic import ValidationError


def in_words(error: ValidationError) -> str:
    """What does not fit, to be put behind the entry's place: ``.bbox[0] does not fit: it should be a valid number``."""
    first = error.errors(include_url=False)[0]
    field, *rest = first["loc"]
    place = f"{field}" + "".join(f"[{part}]" for part in rest if isinstance(part, int))
    return (
        f" has no {place}"
        if first["type"] == "missing"
        else f".{place} does not fit: it {first['msg'].removeprefix('Input ')}"
    )
