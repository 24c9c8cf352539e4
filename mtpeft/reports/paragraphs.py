"""Lines of text in a report: labels, wrapped to the width of a page. Names of others are made visible."""

from __future__ import annotations

from collections.abc import Iterable
from textwrap import fill

from mtpeft.names import visible

WIDTH, LABEL = 80, 13

Line = tuple[str, str]
"""A label and what stands behind it."""


def paragraph(lines: Iterable[Line]) -> str:
    """The lines in 80 columns, texts apart from labels; a label that stands in the line before is not repeated."""
    drawn, before = [], ""
    for label, text in lines:
        shown = "" if label == before else visible(label)
        drawn.append(wrapped(text, f"{shown:{LABEL - 1}} ", " " * LABEL))
        before = label
    return "\n".join(drawn)


def wrapped(text: str, first: str, rest: str) -> str:
    """A text in 80 columns, after ``first`` in its first line and ``rest`` in the others; no word is broken."""
    return fill(
        visible(text), WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False,
        break_long_words=False,
    )  # fmt: skip


def join(*paragraphs: str) -> str:
    """Those that are not empty, an empty line between them."""
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)
