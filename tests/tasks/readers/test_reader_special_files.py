"""What is no regular file: an error at once wherever a reader would open it, and never a wait."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from support.samples import GENERATORS
from support.samples_made import COUNT, Made

from mtpeft.api import SPLITS, DataError
from mtpeft.data.reader import open_reader
from mtpeft.inspection import choose

SECONDS = 5


@contextmanager
def alarm() -> Iterator[None]:
    def late(number: int, frame: object) -> None:
        raise AssertionError(f"still waiting after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def listening(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path may have about 100 bytes
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def read_all(made: Made) -> None:
    """Every sample of every split and target."""
    for gives in made.gives:
        for split in SPLITS:
            reader, place = open_reader(made.data)
            data = reader.read(place, split, gives=gives, seed=0)
            for index in range(len(data)):
                _ = data[index]


def kinds_of_files(made: Made, everywhere: bool) -> list[Path]:
    """One file of each ending (in each folder): annotations, lists, tables, arrays and pictures."""
    files = sorted(file for file in made.root.rglob("*") if file.is_file())
    return list({(file.suffix, file.parent if everywhere else None): file for file in files}.values())


@pytest.mark.parametrize("special", [fifo, listening, device, folder])
@pytest.mark.parametrize("reader", GENERATORS)
def test_readers_never_wait(tmp_path: Path, reader: str, special: Callable[[Path], None]) -> None:
    made = GENERATORS[reader](tmp_path / "data", [f"n{number:02}" for number in range(COUNT)])
    read_all(made)
    pictures = {*made.images, *made.masks}
    for file in kinds_of_files(made, everywhere=special is fifo):
        kept = file.rename(tmp_path / "kept")
        special(file)
        with alarm():
            refused = pytest.raises(DataError) if file in pictures else suppress(DataError)
            with refused:
                read_all(made)
            with suppress(Exception):
                choose(str(made.root))
        file.rmdir() if special is folder else file.unlink()
        kept.rename(file)
    read_all(made)
