"""Which files are images by their names, and where they lie below a folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Container, Iterator
from pathlib import Path

from PIL import Image

from mtpeft.api import DataError

_NOT_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
"""Formats that Pillow knows and does not decode itself: it calls another program for them, or nothing at all."""
_WITH_A_PLUGIN = {".heic": "pillow-heif", ".heif": "pillow-heif", ".hif": "pillow-heif", ".jxl": "pillow-jxl-plugin"}
"""Endings of images that Pillow reads where the package is installed and its plugin registered."""
_USUAL = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".gif", ".jp2"}


def formats() -> list[str]:
    """The formats of Pillow, and of the plugins registered with it, that images are decoded from."""
    Image.init()
    return sorted(set(Image.OPEN) - _NOT_PICTURES)


def suffixes() -> frozenset[str]:
    """How the names of files in these formats end: ``.jpg``, ``.jfif``, ``.avif``, ``.jp2``, ...

    Pillow reads ``.heic`` and ``.jxl`` where a plugin (pillow-heif, pillow-jxl-plugin) is registered with it.
    """
    known = set(formats())
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in known)


def unread(file: Path, where: str = "") -> DataError:
    """What to say of a file that is left out because it is no image by its name."""
    known = ", ".join(sorted(suffixes() & _USUAL))
    package = _WITH_A_PLUGIN.get(file.suffix.lower())
    hint = f"pip install {package}, and register it with Pillow" if package else f"images end in {known}, ..."
    return DataError(f'"{file}" is no image{where} by its name, and left out', hint=hint)


def is_image(file: Path, known: Container[str]) -> bool:
    """Whether a file is an image by its name; hidden ones are not."""
    return file.suffix.lower() in known and not file.name.startswith(".")


def images_in(path: Path) -> list[Path]:
    """The image files directly in a folder, sorted by name."""
    known = suffixes()
    return sorted(file for file in path.iterdir() if is_image(file, known))


def images_under(path: Path) -> tuple[list[Path], list[Path]]:
    """The images in a folder and all folders below it, each once, and the other files; hidden ones are neither.

    Links to folders are followed, and a folder that was met before is not entered again.
    """
    known = suffixes()
    images: list[Path] = []
    others: list[Path] = []
    for file in sorted(files_under(path)):
        (images if is_image(file, known) else others).append(file)
    return images, others


def folders_left_out(path: Path) -> Iterator[DataError]:
    """What to say of folders of images below one whose images are found by their names in it."""
    for folder in sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith(".")):
        if images_under(folder)[0]:
            hint = f'this layout has its images in "{path}" itself: move them there'
            yield DataError(f'folder "{folder}" holds images, and is left out', hint=hint)


def files_under(path: Path) -> Iterator[Path]:
    """Every file in a folder and in all folders below it that are not hidden; a folder named as an image is one.

    A link that leads back to a folder around it is not followed.
    """
    known = suffixes()
    met = {_identity(parent) for parent in (*path.absolute().parents, *path.resolve().parents)}
    for place, folders, names in os.walk(path, followlinks=True):
        if (identity := _identity(Path(place))) in met:
            folders.clear()
            continue
        met.add(identity)
        images = [name for name in folders if is_image(Path(name), known)]
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in images)
        yield from (Path(place, name) for name in (*names, *images) if not name.startswith("."))


def _identity(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_dev, state.st_ino


def only_regular(root: Path) -> None:
    """Refuse what a library that opens files by itself would wait on for ever.

    Raises:
        DataError: naming a FIFO, a device or a socket below the folder.
    """
    pending = [os.fspath(root)] if root.is_dir() else []
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif not entry.is_file(follow_symlinks=False) and _is_special(Path(entry.path)):
                    raise DataError(f'"{entry.path}" is no regular file', hint="remove it from the data")


def _is_special(path: Path) -> bool:
    """Whether there is something that is neither file nor folder."""
    try:
        mode = path.stat().st_mode
    except OSError:  # a link that leads nowhere, or in a circle
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
