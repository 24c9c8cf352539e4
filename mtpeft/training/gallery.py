"""Pictures of what a run says: samples of a split, their truth above and the prediction below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mtpeft.backbone.extract import evaluating
from mtpeft.data.loading import to_device
from mtpeft.files import write_folder
from mtpeft.task import spread
from mtpeft.training.evaluate import predict
from mtpeft.training.run import Run

SHOWN = 6
_SIDE = 224  # of a picture, in pixels
_GAP = 6
_TEXT = 15


def write_galleries(folder: Path, galleries: Mapping[str, Image.Image]) -> None:
    """``TASK.jpg`` of each; a folder that is there is replaced.

    Raises:
        MtpeftError: where it cannot be written.
    """

    def fill(place: Path) -> None:
        for name, picture in galleries.items():
            picture.save(place / f"{name}.jpg", quality=85)

    write_folder(folder, fill)


def gallery(run: Run, name: str, split: str, *, count: int = SHOWN) -> Image.Image:
    """Samples spread evenly over a task's split, none chosen: truth in the first row, predictions in the second."""
    task, data, image = run.tasks[name], run.dataset(name, split), run.backbone.image
    samples, transform = [data[index] for index in spread(len(data), count)], task.transform(image, train=False)
    images, targets = to_device(task.collate([transform(sample) for sample in samples]), run.device)
    with evaluating(run.host):
        found = predict(run, name, images, targets)
    pictures = [sample.image for sample in samples]
    known, true = run.host.head_of(name).classes, [task.truth(target) for target in targets]
    return mosaic(
        {
            "truth": [task.draw(p, t, data.classes) for p, t in zip(pictures, true, strict=True)],
            "prediction": [task.draw(p, f, known) for p, f in zip(pictures, found, strict=True)],
        }
    )


def mosaic(rows: Mapping[str, Sequence[Image.Image]]) -> Image.Image:
    """Rows of pictures, each under its name; all are brought to at most 224 pixels, those of a column stay aligned."""
    small = {name: [_small(picture) for picture in pictures] for name, pictures in rows.items()}
    widths = [max(picture.width for picture in column) for column in zip(*small.values(), strict=True)]
    heights = [_TEXT + _GAP + max(picture.height for picture in pictures) for pictures in small.values()]
    whole = Image.new("RGB", (sum(widths) + _GAP * (len(widths) + 1), sum(heights) + _GAP * len(heights)), "white")
    pen, font, top = ImageDraw.Draw(whole), ImageFont.load_default(size=_TEXT - 2), 0
    for (name, pictures), height in zip(small.items(), heights, strict=True):
        pen.text((_GAP, top + 2), name, fill="black", font=font)
        left = _GAP
        for picture, width in zip(pictures, widths, strict=True):
            whole.paste(picture, (left, top + _TEXT + _GAP))
            left += width + _GAP
        top += height + _GAP
    return whole


def _small(picture: Image.Image) -> Image.Image:
    picture = picture.convert("RGB")
    picture.thumbnail((_SIDE, _SIDE))
    return picture
