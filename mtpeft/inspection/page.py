"""One self-contained HTML page of a data set: counts, findings, and samples with their labels drawn over them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING

from mtpeft.errors import MtpeftError
from mtpeft.inspection.survey import Findings, Survey
from mtpeft.task import spread

if TYPE_CHECKING:
    from PIL import Image

SHOWN = {"train": 24, "val": 12, "test": 12}
_SIDE = 320  # of a picture, in pixels
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1300px; margin: 2em auto; padding: 0 1em; color: #222 }
h1, h2 { font-weight: 600 } code { background: #f2f2f2; padding: .1em .3em } table { border-collapse: collapse }
td, th { padding: .15em .8em; text-align: right; border-bottom: 1px solid #ddd } td:first-child, th:first-child {
text-align: left } .none { color: #b00; font-weight: 600 } .error { color: #b00 } .hint { color: #666 }
.grid { display: flex; flex-wrap: wrap; gap: 12px; align-items: flex-start } figure { margin: 0 }
img { max-width: 300px; max-height: 300px; min-width: 120px; display: block } figcaption { color: #666; font-size: 12px;
max-width: 300px; overflow-wrap: anywhere } pre { background: #f2f2f2; padding: 1em; overflow-x: auto }
"""


def page(found: Survey, stanza: str) -> str:
    """The page, with pictures as JPEG in base64; it asks for no other file.

    Args:
        stanza: the recipe stanza to show.
    """
    title = escape(found.choice.data)
    parts = [f"<h1>{title}</h1>", f"<p>As task type <code>{escape(found.type)}</code>.</p>"]
    parts += [_findings("Errors", "error", found.errors), _findings("Warnings", "warning", found.warnings)]
    parts += [_counts(found), f"<h2>Recipe</h2><pre>{escape(stanza)}</pre>"]
    parts += [_samples(found, split) for split in found.splits]
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    text = f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'
    return text.encode("utf-8", "backslashreplace").decode()  # file names need not be Unicode


def _findings(title: str, kind: str, findings: Findings) -> str:
    if not findings:
        return ""
    items = [
        f'<li class="{kind}">{escape(message)}<br><span class="hint">{escape(hint)}</span></li>'
        for message, hint in findings.items()
    ]
    return f"<h2>{title}</h2><ul>{''.join(items)}</ul>"


def _counts(found: Survey) -> str:
    """Samples by split, and how often each class is shown."""
    names = list(found.splits)
    rows = [_row(["images", *(f"{len(found.splits[name].data):,}" for name in names)])]
    for label in found.classes:
        shown = [found.splits[name].histogram.get(label) for name in names]
        rows.append(_row([escape(label), *map(_count, shown)]))
    heading = "".join(f"<th>{escape(name)}</th>" for name in ["", *names])
    return f"<h2>Counts</h2><table><tr>{heading}</tr>{''.join(rows)}</table>"


def _count(count: int | None) -> str:
    if count is None:
        return "-"
    return f"{count:,}" if count else '<span class="none">0</span>'


def _row(cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _samples(found: Survey, split: str) -> str:
    figures = [
        f'<figure><img alt="" src="data:image/jpeg;base64,{_jpeg(picture)}">'
        f"<figcaption>{escape(name)}</figcaption></figure>"
        for name, picture in _drawn(found, split)
    ]
    return f'<h2>{escape(split)}</h2><div class="grid">{"".join(figures)}</div>'


def _drawn(found: Survey, split: str) -> Iterator[tuple[str, Image.Image]]:
    """Samples spread evenly over a split, those with a label drawn by the task type."""
    for index in spread(len(found.splits[split].data), SHOWN[split]):
        try:
            sample = found.sample(split, index)
        except MtpeftError:
            continue  # it stands among the errors
        picture = sample.image
        if not found.task.empty(sample.target) and not found.task.faults(sample):
            picture = found.task.draw(picture, found.task.truth(sample.target), found.classes)
        yield sample.name, picture


def _jpeg(picture: Image.Image) -> str:
    picture = picture.convert("RGB")
    picture.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()
