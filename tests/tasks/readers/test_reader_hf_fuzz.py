"""Broken Hugging Face data: saved to disk and as Parquet files, and images within them that are none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.reader_samples import labels, names, problems
from support.spoiling import SPOILED, a_folder, a_loop, missing, restored

from mtpeft.api import DataError, MtpeftError, open_data

SPLITS = {"train": [0, 1, 1, 0], "validation": [1, 0], "test": [0, 1, 1]}


@pytest.fixture
def library(tmp_path, monkeypatch):
    found = pytest.importorskip("datasets", reason='the extra "hf" is not installed')
    found.disable_progress_bars()
    monkeypatch.setattr(found.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return found


def encoded(number: int = 0, format: str = "PNG") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (8, 12, 3), np.uint8)
    Image.fromarray(pixels).save(buffer := BytesIO(), format)
    return buffer.getvalue()


def made(library, given: list[int], first: bytes | None = None, label: Any = None):
    kind = label or library.ClassLabel(names=["dog", "cat"])
    images: list[Any] = [{"bytes": encoded(number), "path": None} for number in range(len(given))]
    if first is not None:
        images[0] = {"bytes": first, "path": None}
    features = library.Features({"image": library.Image(), "label": kind})
    return library.Dataset.from_dict({"image": images, "label": given}, features=features)


def saved(library, root: Path) -> str:
    library.DatasetDict({name: made(library, given) for name, given in SPLITS.items()}).save_to_disk(root)
    return f"hf:{root}"


def parquet(library, root: Path) -> str:
    root.mkdir()
    for name, given in SPLITS.items():
        made(library, given).to_parquet(root / f"{name}.parquet")
    return f"hf:{root}"


def zeros(path: Path) -> None:
    path.write_bytes(bytes(len(path.read_bytes())))


def null(path: Path) -> None:
    path.write_text("null")


def a_list(path: Path) -> None:
    path.write_text("[1]")


def nothing(path: Path) -> None:
    path.write_text("{}")


WAYS = (*SPOILED, zeros, null, a_list, nothing)


def everything(data: str) -> dict[str, Any]:
    parts = {split: open_data(data, split, gives="label") for split in ("train", "val", "test")}
    return {split: (names(part), labels(part)) for split, part in parts.items()}


@pytest.mark.parametrize("make", [saved, parquet])
def test_spoiled_files_are_named(library, tmp_path, make):
    data = make(library, tmp_path / "pets")
    before = everything(data)
    for file in sorted(file for file in (tmp_path / "pets").rglob("*") if file.is_file()):
        content = file.read_bytes()
        for spoil in WAYS:
            spoil(file)
            what = f"{spoil.__name__} {file.relative_to(tmp_path)}"
            try:
                after = everything(data)
            except MtpeftError as error:
                assert str(tmp_path / "pets") in error.message and "\n" not in error.message and error.hint, what
                assert "An error occurred" not in error.message, what
            else:
                assert after == before or may_be_less(file, spoil), what
            restored(file, content)


def may_be_less(file: Path, spoil: Callable[[Path], None]) -> bool:
    """A folder without the file of a split has no such split, which is held out then."""
    return file.suffix == ".parquet" and spoil in (missing, a_folder, a_loop)


OFFSETS = (0x41, 0x7F, 0xFF)


def test_offsets_that_lead_nowhere_do_not_end_the_process(library, tmp_path):
    """Arrow reads what lies where a file says, and it may say anything."""
    data = saved(library, tmp_path / "pets")
    file = tmp_path / "pets/train/data-00000-of-00001.arrow"
    content, before = file.read_bytes(), everything(data)
    starts = [index for index in range(0, len(content), 8) if content[index : index + 8] != bytes(8)]
    reasons = Counter()
    for place in starts[:: len(starts) // 25]:
        for byte in OFFSETS:
            file.write_bytes(content[: place + 3] + bytes([byte]) + content[place + 4 :])
            try:
                assert everything(data).keys() == before.keys()
            except MtpeftError as error:
                assert str(tmp_path) in error.message or '"train/' in error.message
                reasons[error.message.rpartition(": ")[0]] += 1
    assert any(said.startswith(f'"{tmp_path / "pets"}", split train is broken') for said in reasons), reasons


IMAGES = {
    "truncated": encoded()[:-60], "cut": encoded()[:20], "empty": b"", "text": b"<html>not found</html>",
    "another format": encoded(format="JPEG")[:-60], "no pixels": encoded().replace(b"\0\0\0\x0c", bytes(4), 1),
}  # fmt: skip


@pytest.mark.parametrize("kind", IMAGES)
def test_images_that_are_none_are_named(library, tmp_path, kind):
    made(library, [0, 1, 0, 1] * 5, IMAGES[kind]).save_to_disk(tmp_path / "pets")
    with pytest.raises(DataError, match=r'image "train/0" cannot be read: ') as caught:
        everything(f"hf:{tmp_path / 'pets'}")
    assert caught.value.hint and "\n" not in caught.value.message


@pytest.mark.parametrize("format", ["JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_images_of_any_format_are_read(library, tmp_path, format):
    made(library, [0, 1, 0, 1] * 5, encoded(format=format)).save_to_disk(tmp_path / "pets")
    assert sum(len(given) for given, _ in everything(f"hf:{tmp_path / 'pets'}").values()) == 20


@pytest.mark.parametrize("label", [2, 99, -2])
def test_labels_that_are_no_class(library, tmp_path, label):
    """Numbers that get past the library: they were written before their names."""
    numbers = made(library, [0, label, 1, 0], label=library.Value("int64"))
    kinds = library.Features(numbers.features | {"label": library.ClassLabel(names=["dog", "cat"])})
    library.Dataset(numbers.data.replace_schema_metadata(None), library.DatasetInfo(features=kinds)).save_to_disk(
        tmp_path / "pets"
    )
    data, (error,) = problems(f"hf:{tmp_path / 'pets'}")
    assert error.message == f'"{tmp_path / "pets"}", train/1: label {label} is no class'
    assert "0 to 1" in error.hint and "train/1" not in names(data)
