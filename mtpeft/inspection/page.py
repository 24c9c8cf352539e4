"""One self-contained HTML page of a data set: counts, findings, and samples with their labels drawn over them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mtpeft.errors import MtpeftError
from mtpeft.inspection.survey import Survey
from mtpeft.reports.numbers import whole
from mtpeft.reports.pages import render_page
from mtpeft.reports.table import Table
from mtpeft.task import spread

if TYPE_CHECKING:
    from PIL import Image

SHOWN = {"train": 24, "val": 12, "test": 12}
_SIDE = 320  # of a picture, in pixels


def page(found: Survey, stanza: str) -> str:
    """The page, with pictures as JPEG in base64; it asks for no other file.

    Args:
        stanza: the recipe stanza to show.
    """
    return render_page(
        "data.html",
        title=found.choice.data,
        type=found.type,
        errors=found.errors,
        warnings=found.warnings,
        counts=_counts(found),
        stanza=stanza.rstrip(),
        samples={split: list(_drawn(found, split)) for split in found.splits},
    )


def _counts(found: Survey) -> Table:
    """Samples by split, and how often each class is shown."""
    splits = found.splits.values()
    table = Table(["", *found.splits], rows=[["images", *(whole(len(split.data)) for split in splits)]])
    for label in found.classes:
        shown = [split.histogram.get(label) for split in splits]
        table.rows.append([label, *("none" if count == 0 else whole(count) for count in shown)])
    return table


def _drawn(found: Survey, split: str) -> Iterator[tuple[str, str]]:
    """Name and JPEG of samples spread evenly over a split, those with a label drawn by the task type."""
    for index in spread(len(found.splits[split].data), SHOWN[split]):
        try:
            sample = found.sample(split, index)
        except MtpeftError:
            continue  # it stands among the errors
        picture = sample.image
        if not found.task.empty(sample.target) and not found.task.faults(sample):
            picture = found.task.draw(picture, found.task.truth(sample.target), found.classes)
        yield sample.name, _jpeg(picture)


def _jpeg(picture: Image.Image) -> str:
    """In base64."""
    picture = picture.convert("RGB")
    picture.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()
