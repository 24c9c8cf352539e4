"""Where the images of a YOLO data set are, and its classes: from ``data.yaml``, or from the folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Strict, TypeAdapter, ValidationError

from mtpeft.api import SPLITS, DataError
from mtpeft_tasks.readers import files, walk
from mtpeft_tasks.readers.splits import FOLDERS
from mtpeft_tasks.readers.typed import in_words

_LISTED = ("classes.txt", "labels/classes.txt")
_YAML = ("data.yaml", "data.yml", "dataset.yaml")
_Text = Annotated[str, Strict()]
_Places = _Text | list[_Text] | None


@dataclass(frozen=True)
class Layout:
    """The images of each split by name, relative to the root; the classes in the order of their numbers."""

    root: Path
    splits: dict[str, list[str]]
    classes: tuple[str, ...]
    named_in: str


@dataclass(frozen=True)
class Settings:
    """What ``data.yaml`` says."""

    names: list[_Text] | dict[int, _Text]
    nc: int | None = None
    path: _Text | None = None
    train: _Places = None
    val: _Places = None
    test: _Places = None
    kpt_shape: Any = None


def find_yaml(path: Path) -> Path | None:
    """The path itself, or the yaml in it; None where there is none."""
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        return path
    return files.first_file(path, _YAML)


def described(file: Path) -> Layout:
    """The layout that a yaml describes.

    Raises:
        DataError: naming the file and the field that does not fit.
    """
    settings = _settings(file)
    root = file.parent
    base = _base(root, settings.path)
    places = {"train": settings.train, "val": settings.val, "test": settings.test}
    splits = {name: _images(root, base, f'"{file}".{name}', entry) for name, entry in places.items() if entry}
    return Layout(root, splits, _classes(file, settings), f'"{file}"')


def guessed(root: Path) -> Layout:
    """The layout of a folder without yaml.

    Raises:
        DataError: where there are no images, or no ``classes.txt``.
    """
    listed = files.first_file(root, _LISTED)
    if listed is None:
        raise DataError(f'"{root}" has no data.yaml', hint="add it, or name the classes in classes.txt")
    found = {}
    for split in SPLITS:
        places = [place for name in FOLDERS[split] for place in (f"images/{name}", f"{name}/images")]
        found[split] = next((place for place in places if (root / place).is_dir()), "")
    if not any(found.values()):
        found = {"train": "images"}
    splits = {split: _images(root, root, f'"{root}"', place) for split, place in found.items() if place}
    return Layout(root, splits, _unique(listed, files.read_lines(listed)), f'"{listed}"')


def _settings(file: Path) -> Settings:
    try:
        tree = yaml.safe_load(files.read_bytes(file))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise DataError(f'"{file}" is not valid yaml: {reason}', hint="repair it") from None
    if not isinstance(tree, dict):
        raise DataError(f'"{file}" has no settings', hint="it needs names, train and val")
    try:
        settings = TypeAdapter(Settings).validate_python({k: v for k, v in tree.items() if isinstance(k, str)})
    except ValidationError as error:
        hint = "names are a list, or number: name; put a name like no or 7 in quotes"
        raise DataError(f'"{file}"{in_words(error)}', hint=hint) from None
    if settings.kpt_shape is not None:
        raise DataError(f'"{file}" describes keypoints (kpt_shape)', hint="give it labels of boxes or polygons")
    return settings


def _classes(file: Path, settings: Settings) -> tuple[str, ...]:
    names = settings.names
    if isinstance(names, dict):
        missing = [number for number in range(len(names)) if number not in names]
        if missing:
            raise DataError(f'"{file}".names has no {missing[0]}', hint="number the names from 0 on")
        names = [names[number] for number in range(len(names))]
    if settings.nc not in (None, len(names)):
        raise DataError(f'"{file}": nc is {settings.nc}, but there are {len(names)} names', hint="correct nc or names")
    return _unique(file, names)


def _unique(file: Path, names: Sequence[str]) -> tuple[str, ...]:
    if not names:
        raise DataError(f'"{file}" names no class', hint="add their names")
    if twice := files.repeated(names):
        raise DataError(f'"{file}" names the class "{twice[0]}" twice', hint="give each class a name of its own")
    return tuple(names)


def _base(root: Path, path: str | None) -> Path:
    """The folder that paths are relative to: what the yaml says, unless that is elsewhere."""
    try:
        return files.inside(root, path or ".", "path")
    except DataError:
        return root


def _images(root: Path, base: Path, where: str, entry: str | Sequence[str]) -> list[str]:
    """The names of the images of a split, relative to the root.

    Raises:
        DataError: for a path that is missing or outside of the data, or without images.
    """
    found: dict[str, None] = {}
    for text in [entry] if isinstance(entry, str) else entry:
        while text.startswith("../"):
            text = text.removeprefix("../")
        place = files.inside(base, text, where)
        images = walk.images_under(place)[0] if place.is_dir() else _listed(base, place)
        if not images:
            raise DataError(f'{where}: "{text}" has no images', hint="give a folder of images, or a list of them")
        for image in images:
            name = image.relative_to(root).as_posix()
            if name in found:
                raise DataError(f'{where}: "{name}" is there twice', hint="name each image once")
            found[name] = None
    return list(found)


def _listed(base: Path, file: Path) -> list[Path]:
    lines = enumerate(files.read_lines(file), 1)
    return [files.inside(base, line, f'"{file}", entry {number}') for number, line in lines]
