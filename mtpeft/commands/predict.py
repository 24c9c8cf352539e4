"""``mtpeft predict``: what a run says of images, as JSON with class names and as pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mtpeft.commands.output import print_json
from mtpeft.data.loading import to_device
from mtpeft.errors import DataError, UsageError, did_you_mean
from mtpeft.files import write_folder, write_json
from mtpeft.task import Sample
from mtpeft.training.evaluate import predict
from mtpeft.training.run import Run
from mtpeft.training.run_files import refuse_existing
from mtpeft.training.setup import open_run

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")


def run(folder: Path, *, images: Sequence[Path], task: str, out: Path, json: bool) -> None:
    """Predict images with a task of a run; ``predictions.json`` and one picture for each image go to ``out``.

    Args:
        images: image files, or folders of them.

    Raises:
        UsageError: for an unknown task, or an ``out`` that exists.
        DataError: for a file that is no image.
    """
    refuse_existing(out, hint="give another --out")
    files = find_images(images)
    opened = open_run(folder)
    if task not in opened.host.tasks:
        raise UsageError(f'"{folder}" has no task "{task}"', hint=did_you_mean(task, opened.host.tasks))
    classes = opened.host.head_of(task).classes
    found: list[dict[str, Any]] = []

    def fill(place: Path) -> None:
        for name, (sample, prediction) in zip(_names(files), _predictions(opened, task, files), strict=True):
            found.append({"image": sample.name, **opened.tasks[task].describe(prediction, classes)})
            opened.tasks[task].draw(sample.image, prediction, classes).save(place / name)
        write_json(place / "predictions.json", {"task": task, "classes": list(classes), "predictions": found})

    write_folder(out, fill)
    if json:
        print_json({"task": task, "out": str(out), "predictions": found})
    else:
        print(f"{len(files)} predictions are in {out}")


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The files, and those in the folders, sorted within each.

    Raises:
        DataError: if a path is not there, or a folder holds no image.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise DataError(f'there is no image "{path}"', hint="give files, or folders of them")
        inside = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in _SUFFIXES] if path.is_dir() else [path]
        if not inside:
            raise DataError(f'"{path}" holds no image', hint=f"known endings: {' '.join(_SUFFIXES)}")
        found += inside
    return found


def read_image(path: Path) -> Sample:
    """
    Raises:
        DataError: if the file cannot be read as an image.
    """
    try:
        with Image.open(path) as image:
            return Sample(image.convert("RGB"), {}, str(path))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f'"{path}" cannot be read as an image: {error}', hint="leave it out, or convert it") from error


def _predictions(opened: Run, name: str, files: Sequence[Path]) -> Iterator[tuple[Sample, dict[str, Any]]]:
    task = opened.tasks[name]
    transform = task.transform(opened.backbone.image, train=False)
    for start in range(0, len(files), task.batch_size):
        samples = [read_image(file) for file in files[start : start + task.batch_size]]
        images, targets = to_device(task.collate([transform(sample) for sample in samples]), opened.device)
        yield from zip(samples, predict(opened, name, images, targets), strict=True)


def _names(files: Sequence[Path]) -> list[str]:
    """A file name for each picture; images of one name in several folders are numbered."""
    names: list[str] = []
    for file in files:
        name, number = f"{file.stem}.png", 1
        while name in names:
            number += 1
            name = f"{file.stem}.{number}.png"
        names.append(name)
    return names
