"""``mtpeft predict``: what a run says of images, as JSON with class names and as pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mtpeft.commands.output import print_json
from mtpeft.data.loading import to_device
from mtpeft.errors import DataError, UsageError, did_you_mean
from mtpeft.files import write_folder, write_json
from mtpeft.task import Sample
from mtpeft.training.evaluate import predict_on
from mtpeft.training.run import Run
from mtpeft.training.run_files import refuse_existing
from mtpeft.training.setup import open_run

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")


def run(folder: Path, *, images: Sequence[Path], task: str, out: Path, json: bool) -> None:
    """Predict images with tasks of a run; ``predictions.json`` and one picture for each image go to ``out``.

    Args:
        images: image files, or folders of them.
        task: one, or several with commas between them: each image is then decoded once, what the tasks share runs once,
            and each task has a folder in ``out``.

    Raises:
        UsageError: for an unknown task, or an ``out`` that exists.
        DataError: for a file that is no image.
    """
    refuse_existing(out, hint="give another --out")
    files = find_images(images)
    opened = open_run(folder)
    names = list(dict.fromkeys(name.strip() for name in task.split(",")))
    for name in names:
        if name not in opened.host.tasks:
            raise UsageError(f'"{folder}" has no task "{name}"', hint=did_you_mean(name, opened.host.tasks))
    classes = {name: opened.host.head_of(name).classes for name in names}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}

    def fill(place: Path) -> None:
        places = {name: place / name if len(names) > 1 else place for name in names}
        for own in places.values():
            own.mkdir(exist_ok=True)
        for picture, (sample, predictions) in zip(_names(files), _predictions(opened, names, files), strict=True):
            for name, prediction in predictions.items():
                task = opened.tasks[name]
                found[name].append({"image": sample.name, **task.describe(prediction, classes[name])})
                task.draw(sample.image, prediction, classes[name]).save(places[name] / picture)
        for name, own in places.items():
            said = {"task": name, "classes": list(classes[name]), "predictions": found[name]}
            write_json(own / "predictions.json", said)

    write_folder(out, fill)
    if json:
        each = [{"task": name, "predictions": found[name]} for name in names]
        print_json({**each[0], "out": str(out)} if len(names) == 1 else {"tasks": each, "out": str(out)})
    else:
        print(f"{len(files) * len(names)} predictions are in {out}")


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


def _predictions(
    opened: Run, names: Sequence[str], files: Sequence[Path]
) -> Iterator[tuple[Sample, dict[str, dict[str, Any]]]]:
    tasks = {name: opened.tasks[name] for name in names}
    transforms = {name: task.transform(opened.backbone.image, train=False) for name, task in tasks.items()}
    size = min(task.batch_size for task in tasks.values())
    for start in range(0, len(files), size):
        samples = [read_image(file) for file in files[start : start + size]]
        prepared = {n: [transforms[n](sample) for sample in samples] for n in names}
        loaded = {n: to_device(tasks[n].collate(prepared[n]), opened.device) for n in names}
        images, rows = _once({name: images for name, (images, _) in loaded.items()})
        found = predict_on(opened, images, rows, {name: targets for name, (_, targets) in loaded.items()})
        for index, sample in enumerate(samples):
            yield sample, {name: found[name][index] for name in names}


def _once(batches: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, range]]:
    """Batches behind each other, those that are equal once, and the rows of each."""
    kept: list[Tensor] = []
    rows: dict[str, range] = {}
    for name, images in batches.items():
        place = next((number for number, other in enumerate(kept) if torch.equal(images, other)), len(kept))
        kept += [images] if place == len(kept) else []
        rows[name] = range(place * len(images), (place + 1) * len(images))
    return torch.cat(kept), rows


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
