"""Bad input for every registered reader: a usable data set with correct targets, or one sentence naming the file."""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.samples import GENERATORS
from support.samples_made import COUNT, HEIGHT, OUTSIDE, WIDTH, Made, picture
from support.spoiling import SPOILED, missing

from mtpeft.data.reader import open_data, open_reader
from mtpeft.errors import MtpeftError
from mtpeft.plugins import registry, resolve
from mtpeft.task import Sample, Task

READERS = [name for name in registry("readers") if name in GENERATORS]
PLAIN = [f"n{number:02}" for number in range(COUNT)]
STRANGE = [
    "with space", "two  spaces", "üñí", "日本", "🐈", "per%cent", "a+b", "a'b", "(a)", "dots.and.dots", "a&b",
    "semi;colon",
]  # fmt: skip
SPLITS = ("train", "val", "test")
EXAMPLES = int(os.environ.get("MTPEFT_FUZZ", "60"))
"""Mutations of each reader's files; more are worth a night."""


@pytest.fixture(params=READERS)
def made(request, tmp_path) -> Made:
    return make(request.param, tmp_path)


def make(reader: str, folder: Path, names: list[str] = PLAIN) -> Made:
    picture(folder / OUTSIDE, 99)
    (folder / "data").mkdir()
    return GENERATORS[reader](folder / "data", names)


def tasks(made: Made) -> list[Task]:
    """A task of each type that learns from the data."""
    assert set(made.gives) <= set(open_reader(made.data)[0].gives)
    found = [resolve("tasks", name) for name in registry("tasks")]
    return [task(data=made.data) for task in found if task.gives in made.gives]


def read(made: Made) -> dict[tuple[str, str], list[Sample]]:
    """Every sample of every split, as each task type sees it, its targets checked."""
    found = {}
    for task in tasks(made):
        for split in SPLITS:
            data = open_data(made.data, split, gives=task.gives)
            assert data.manifest()["count"] == len(data)
            samples = [data[index] for index in range(len(data))]
            for sample in samples:
                whole = Sample(sample.image, {"classes": data.classes, **sample.target}, sample.name)
                assert (sample.image.mode, task.faults(whole)) == ("RGB", [])
            found[task.gives, split] = samples
    assert found, f"no task type learns from {made.data}"
    return found


def refusal(made: Made) -> str | None:
    """The one sentence that says why the data cannot be used; None where it can."""
    try:
        read(made)
    except MtpeftError as error:
        assert error.message and "\n" not in error.message.strip(), error.message
        return error.message
    return None


def plain(found: dict[tuple[str, str], list[Sample]]) -> dict[Any, Any]:
    """Targets as values that compare, by target, split and name."""
    return {
        (*key, sample.name): {
            name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in sample.target.items()
        }
        for key, samples in found.items()
        for sample in samples
    }


def labels(found: dict[tuple[str, str], list[Sample]]) -> int:
    """How many images, objects and labelled pixels there are."""
    total = 0
    for (gives, _), samples in found.items():
        for sample in samples:
            value = torch.as_tensor(sample.target[gives])
            total += 1 + (int((value != 255).sum()) if gives == "mask" else len(value) if value.ndim else 1)
    return total


def test_a_sound_set_is_read(made):
    found = read(made)
    assert {sum(len(found[key]) for key in found if key[0] == gives) for gives, _ in found} == {COUNT}
    assert all(sample.image.size == (WIDTH, HEIGHT) for samples in found.values() for sample in samples)


@pytest.mark.parametrize("reader", READERS)
def test_names_may_be_strange(reader, tmp_path):
    (tmp_path / "plain").mkdir(), (tmp_path / "störange nämes").mkdir()
    expected = list(plain(read(make(reader, tmp_path / "plain"))).values())
    assert list(plain(read(make(reader, tmp_path / "störange nämes", STRANGE))).values()) == expected


@pytest.mark.parametrize("reader", READERS)
def test_names_that_are_no_unicode(reader, tmp_path):
    made = make(reader, tmp_path, [os.fsdecode(b"caf\xe9"), *PLAIN[1:]])
    message = refusal(made)
    assert message is None or named(message, made)


# images


def cut_in_the_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def a_bomb(path: Path) -> None:
    """A small file that claims to be an image of 60,000 x 60,000 pixels."""
    path.write_bytes(png(60_000, 60_000))


def a_large_claim(path: Path) -> None:
    """Within Pillow's limit, but nothing is behind it."""
    path.write_bytes(png(9_000, 9_000))


def no_pixels(path: Path) -> None:
    path.write_bytes(png(0, 0))


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


NO_IMAGES = (*(way for way in SPOILED if way is not missing), cut_in_the_header, a_bomb, a_large_claim, no_pixels)


@pytest.mark.parametrize("spoil", NO_IMAGES, ids=lambda spoil: spoil.__name__)
def test_a_spoiled_image_is_named(made, spoil: Callable[[Path], None]):
    if not made.images:
        return
    spoil(made.images[1])
    message = refusal(made) or "nothing was said"
    files = (made.images[1], *made.masks[1:2], *made.texts)
    assert any(name in message for name in (*(file.name for file in files), *made.entries[1:2])), message


@pytest.mark.parametrize("spoil", NO_IMAGES, ids=lambda spoil: spoil.__name__)
def test_a_spoiled_mask_is_named(made, spoil: Callable[[Path], None]):
    if made.masks:
        spoil(made.masks[1])
        message = refusal(made) or "nothing was said"
        assert made.masks[1].name in message or made.images[1].name in message


def upright() -> Image.Image:
    pixels = np.random.default_rng(5).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    return Image.fromarray(pixels)


def rotated(path: Path, format: str = "PNG") -> None:
    """Stored on its side, with the orientation that puts it upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    upright().transpose(Image.Transpose.ROTATE_90).save(path, format, exif=exif)


def rotated_jpeg(path: Path) -> None:
    rotated(path, "JPEG")


def rotated_tiff(path: Path) -> None:
    rotated(path, "TIFF")


def rotated_by_xmp(path: Path) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"></rdf></x:xmpmeta>'
    upright().transpose(Image.Transpose.ROTATE_90).save(path, "WEBP", xmp=xmp)


def broken_exif(path: Path) -> None:
    upright().save(path, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")


def grey(path: Path) -> None:
    upright().convert("L").save(path, "PNG")


def grey_16_bit(path: Path) -> None:
    Image.fromarray(np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 100).save(path, "PNG")


def grey_float(path: Path) -> None:
    values = np.full((HEIGHT, WIDTH), 0.5, np.float32)
    values[0, 0] = np.nan
    Image.fromarray(values).save(path, "TIFF")


def cmyk(path: Path) -> None:
    upright().convert("CMYK").save(path, "JPEG")


def lab(path: Path) -> None:
    Image.frombytes("LAB", (WIDTH, HEIGHT), upright().tobytes()).save(path, "TIFF")


def rgba(path: Path) -> None:
    upright().convert("RGBA").save(path, "PNG")


def transparent_palette(path: Path) -> None:
    upright().quantize(8).save(path, "PNG", transparency=b"\x00\x80\xff")


def two_tones(path: Path) -> None:
    upright().convert("1").save(path, "PNG")


def animated(path: Path) -> None:
    upright().save(path, "GIF", save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT))], duration=100)


STRANGE_IMAGES = (
    rotated, rotated_jpeg, rotated_tiff, rotated_by_xmp, broken_exif, grey, grey_16_bit, grey_float, cmyk, rgba,
    transparent_palette, two_tones, animated, lab,
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")  # torchvision's own conversion
@pytest.mark.parametrize("change", STRANGE_IMAGES, ids=lambda change: change.__name__)
def test_a_strange_image_is_read_or_named(made, change: Callable[[Path], None]):
    if not made.images:
        return
    before = plain(read(made))
    change(made.images[1])
    message = refusal(made)
    if message is None:
        assert plain(read(made)) == before
        assert all(sample.image.size == (WIDTH, HEIGHT) for samples in read(made).values() for sample in samples)
    else:
        assert any(name in message for name in (made.images[1].name, *made.entries[1:2]))
        assert change in (broken_exif, lab)


@pytest.mark.parametrize("change", [cmyk, rgba, animated, grey_16_bit, grey_float, rotated], ids=lambda c: c.__name__)
def test_a_mask_that_holds_no_classes_is_named(made, change: Callable[[Path], None]):
    if made.masks:
        change(made.masks[1])
        assert made.masks[1].name in (refusal(made) or "nothing was said")


# folders


def test_a_loop_of_folders_ends(made):
    before = plain(read(made))
    for place in {file.parent for file in (*made.images, made.root / "x")}:
        (place / "loop").symlink_to(made.root, target_is_directory=True)
    assert plain(read(made)) == before


def test_hidden_files_are_left_alone(made):
    before = plain(read(made))
    for place in {file.parent for file in (*made.images, *made.masks, *made.texts)}:
        (place / ".DS_Store").write_bytes(b"\0\1")
        (place / "._0.png").write_bytes(b"\0\5\x16\7")
        picture(place / ".thumbnails" / "x" / "0.png", 0)
    assert plain(read(made)) == before


# annotations


@pytest.mark.parametrize("reader", READERS)
def test_what_a_format_must_refuse(reader, tmp_path):
    made = make(reader, tmp_path)
    for edit in made.edits:
        before = edit.file.read_bytes()
        changed = before.decode().replace(edit.old, edit.new)
        assert changed != before.decode(), f"{edit.what}: there is no {edit.old!r} in {edit.file.name}"
        edit.file.write_bytes(changed.encode())
        assert (edit.named or edit.file.name) in (refusal(made) or "nothing was said"), edit.what
        edit.file.write_bytes(before)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00\x80", b"\n\n", b"[]", b"{}", b"null"])
def test_annotations_that_are_none(made, content: bytes):
    for file in made.texts:
        before = file.read_bytes()
        file.write_bytes(content)
        message = refusal(made)
        if message is None:
            assert file in made.optional and not content.strip(), file.name
        else:
            assert named(message, made), message
        file.write_bytes(before)


def named(message: str, made: Made) -> bool:
    """Whether a message names a file or folder of the data; one that lies within a library, by split and number."""
    if (made.entries or not made.images) and re.search(r"(train|val|test)/\d+", message):
        return True
    return str(made.root) in message or any(path.name in message for path in made.root.rglob("*"))


def mutate(content: bytes, position: int, mutation: str, byte: int) -> bytes:
    position %= max(len(content), 1)
    head, tail = content[:position], content[position:]
    if mutation == "truncate":
        return head
    if mutation == "delete":
        return head + tail[1:]
    return head + bytes([byte]) + tail[mutation == "replace" :]


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, Made]:
    """A data set for each reader, made once: a mutated file is put back."""
    return {}


@pytest.mark.parametrize("reader", READERS)
def test_mutated_annotations(reader, sets, tmp_path_factory):
    if reader not in sets:
        sets[reader] = make(reader, tmp_path_factory.mktemp(reader))
    made = sets[reader]
    spoiled = (*made.texts, *made.masks[:1], *made.images[:1])
    if not spoiled:
        return
    before = labels(read(made))

    @settings(max_examples=EXAMPLES, derandomize=True)
    @given(
        st.sampled_from(spoiled),
        st.lists(
            st.tuples(
                st.integers(0, 10_000),
                st.sampled_from(["replace", "delete", "insert", "truncate"]),
                st.integers(0, 255),
            ),
            min_size=1,
            max_size=4,
        ),
    )
    def spoil(file: Path, mutations: list[tuple[int, str, int]]) -> None:
        content = file.read_bytes()
        try:
            changed = content
            for mutation in mutations:
                changed = mutate(changed, *mutation)
            file.write_bytes(changed)
            message = refusal(made)
            assert message is None or named(message, made), message
        finally:
            file.write_bytes(content)

    @settings(max_examples=EXAMPLES, derandomize=True)
    @given(st.sampled_from(made.texts or made.images), st.integers(0, 10_000), st.integers(0, 255))
    def change_one_byte(file: Path, position: int, byte: int) -> None:
        """A character that is no digit carries the form: where it changes, no label may get lost in silence."""
        content = file.read_bytes()
        position %= len(content)
        if content[position : position + 1].isdigit() or byte == ord("#"):  # which begins a comment in some formats
            return
        try:
            file.write_bytes(mutate(content, position, "replace", byte))
            try:
                assert labels(read(made)) >= before
            except MtpeftError as error:
                assert named(error.message, made), error.message
        finally:
            file.write_bytes(content)

    spoil()
    if made.texts:
        change_one_byte()


def test_every_reader_has_a_generator():
    """Give one that fails here a small valid data set in samples.py."""
    assert list(registry("readers")) == READERS
