"""The text report of a data set, from the plain values of its survey; about 80 columns, readable without colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mtpeft.names import visible_lines
from mtpeft.reports.numbers import UNDEFINED, shorten, whole
from mtpeft.reports.paragraphs import Line, join, paragraph, wrapped
from mtpeft.reports.table import Table

if TYPE_CHECKING:
    from rich.console import Console

MOST = 30
"""Classes, and findings of one kind, that are shown; JSON has all."""


def render_data(report: Mapping[str, Any], console: Console | None = None) -> str:
    """The report of a data set: what it is, counts, sizes, classes, duplicates, findings and the recipe's stanza."""
    tables = [_sizes(report), _classes(report), _duplicates(report)]
    drawn = [table.render(console) for table in tables if table.rows]
    more = len(report["classes"]) - MOST
    if more > 0 and len(drawn) > 1:
        drawn[1] += f"\nand {more} classes more: --json has all"
    findings = [_findings(report, kind) for kind in ("errors", "warnings")]
    return join(paragraph(_what(report)), *drawn, *findings, visible_lines(report["recipe"].rstrip()))


def _what(report: Mapping[str, Any]) -> list[Line]:
    lines = [("data", report["data"]), ("read as", report["type"])]
    if report["recognised"]:
        lines.append(("recognised", f"by the reader {report['reader']} alone"))
    if report["other_types"]:
        others = ", ".join(report["other_types"])
        lines.append(
            ("others", f"the reader {report['reader']} serves {others} too: --task {report['other_types'][0]}")
        )
    return lines


def _sizes(report: Mapping[str, Any]) -> Table:
    """Least, median and most of width, height and their ratio."""
    measures = ("width", "height", "aspect")
    table = Table(["split", "images", "no label", "unreadable", *measures])
    for name, split in report["splits"].items():
        counts = [whole(split[key]) for key in ("images", "empty", "unreadable")]
        table.rows.append([name, *counts, *(_spread(split["sizes"].get(measure)) for measure in measures)])
    return table


def _spread(values: Sequence[float] | None) -> str:
    """
    >>> _spread([1, 2, 4]), _spread([0.5, 0.5, 0.5]), _spread(None)
    ('1 / 2 / 4', '0.5', '-')
    """
    if values is None:
        return UNDEFINED
    shown = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in values]
    return shown[0] if values[0] == values[-1] else " / ".join(shown)


def _classes(report: Mapping[str, Any]) -> Table:
    """How often each class is shown, in the unit that the data counts."""
    table = Table(["class", *report["splits"]])
    histograms = [split["histogram"] for split in report["splits"].values()]
    for label in report["classes"][:MOST] if any(histograms) else ():
        table.rows.append([shorten(label, 40), *(_shown(shown.get(label)) for shown in histograms)])
    return table


def _shown(count: int | None) -> str:
    return "none" if count == 0 else whole(count)


def _duplicates(report: Mapping[str, Any]) -> Table:
    table = Table(["images of", "also in", "same pixels", "almost the same"], words=2)
    for twins in report["duplicates"]:
        table.rows.append([twins["of"], twins["also"], whole(len(twins["exact"])), whole(len(twins["near"]))])
    return table


def _findings(report: Mapping[str, Any], kind: str) -> str:
    found = report[kind]
    lines = [_wrapped(finding) for finding in found[:MOST]]
    if len(found) > MOST:
        lines.append(f"  and {len(found) - MOST} more: --json has all")
    return "\n".join([f"{len(found)} {kind if len(found) > 1 else kind[:-1]}:", *lines]) if found else ""


def _wrapped(finding: Mapping[str, str]) -> str:
    lines = [("  - ", finding["message"]), ("    hint: ", finding["hint"])]
    return "\n".join(wrapped(text, label, " " * len(label)) for label, text in lines if text)
