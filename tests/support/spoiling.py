"""Ways in which a file of a data set can be broken, and its way back."""

from __future__ import annotations

from pathlib import Path


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:7])


def halved(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def of_another_kind(path: Path) -> None:
    path.write_text("<html>not found</html>")


def noise(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 4)


def missing(path: Path) -> None:
    path.unlink()


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


SPOILED = (emptied, cut, halved, short, of_another_kind, noise, missing, a_folder, a_loop)


def restored(file: Path, content: bytes) -> None:
    if file.is_dir():
        file.rmdir()
    else:
        file.unlink(missing_ok=True)
    file.write_bytes(content)
