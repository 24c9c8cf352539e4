"""Broken files in the layouts that torchvision reads: the same labels as before, or one sentence that names them."""

from __future__ import annotations

import pickle
import re
import struct
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat
from support.reader_samples import labels, names, problems
from support.spoiling import SPOILED, a_folder, halved, missing, restored, short
from support.torchvision_samples import HASHED, MADE, pixels
from torchvision import datasets

from mtpeft.api import DataError, MtpeftError, open_data
from mtpeft_tasks.readers.torchvision import KNOWN
from mtpeft_tasks.readers.walk import suffixes

# torchvision leaves files open that it cannot decode.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


@pytest.fixture(autouse=True)
def any_hash(monkeypatch):
    for module in HASHED:
        monkeypatch.setattr(import_module(f"torchvision.datasets.{module}"), "check_integrity", lambda *_: True)


LISTS = (".txt", ".csv", ".data")


def chosen(root: Path) -> list[Path]:
    """Every file that is no picture, and the last picture."""
    files = sorted(file for file in root.rglob("*") if file.is_file())
    pictures = [file for file in files if file.suffix in suffixes()]
    return [file for file in files if file not in pictures] + pictures[-1:]


def everything(data: str) -> dict[str, tuple[list[str], list[str]]]:
    """Names and labels of the samples of each split, every image read."""
    parts = {split: open_data(data, split, gives="label") for split in ("train", "val", "test")}
    return {split: (names(part), labels(part)) for split, part in parts.items()}


def shown(found: dict[str, tuple[list[str], list[str]]]) -> Counter[str]:
    return Counter(label for _, given in found.values() for label in given)


@pytest.mark.parametrize("name", KNOWN)
def test_spoiled_files_are_named(tmp_path, name):
    MADE[name](tmp_path, name)
    data = f"torchvision:{name}@{tmp_path}"
    before = everything(data)
    for file in chosen(tmp_path):
        content = file.read_bytes()
        for spoil in SPOILED:
            spoil(file)
            what = f"{spoil.__name__} {file.name}"
            try:
                after = everything(data)
            except MtpeftError as error:
                assert str(tmp_path) in error.message or re.search(r'"(train|val|test)/\d+"', error.message), what
                assert error.message[-1] not in ": " and error.hint, what
            else:
                assert after == before or (may_be_less(file, spoil) and shown(after) < shown(before)), what
            restored(file, content)


def may_be_less(file: Path, spoil: Callable[[Path], None]) -> bool:
    """A list of fewer lines and a folder of fewer pictures are less data, and no fault that anyone could see."""
    if file.suffix in suffixes():
        return spoil in (missing, a_folder)
    return spoil in (halved, short) and file.suffix in LISTS


def pickled(name: str, file: str, **changed: Any) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        MADE[name](root, name)
        place = root / getattr(datasets, name).base_folder / file
        place.write_bytes(pickle.dumps(pickle.loads(place.read_bytes()) | changed))

    return write


def mnist(images: bytes, labels: bytes) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        MADE["MNIST"](root, "MNIST")
        for kind, content in (("images-idx3", images), ("labels-idx1", labels)):
            (root / "MNIST/raw" / f"train-{kind}-ubyte").write_bytes(content)

    return write


def stl10(labels: bytes, classes: str = "ape\nbee\n") -> Callable[[Path], None]:
    def write(root: Path) -> None:
        MADE["STL10"](root, "STL10")
        (root / "stl10_binary/train_y.bin").write_bytes(labels)
        (root / "stl10_binary/class_names.txt").write_text(classes)

    return write


def svhn(labels: Any) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        savemat(root / "train_32x32.mat", {"X": pixels(32, 32, 3, 4), "y": labels})
        savemat(root / "test_32x32.mat", {"X": pixels(32, 32, 3, 4), "y": np.ones((4, 1))})

    return write


def idx(count: int, *shape: int, kind: int = 8) -> bytes:
    head = struct.pack(f">{2 + len(shape)}I", 256 * kind + 1 + len(shape), count, *shape)
    return head + pixels(count, *shape).tobytes()


IMAGES, LABELS = idx(4, 28, 28), struct.pack(">II", 0x801, 4)
WRONG = {
    "a class there is not": ("CIFAR10", pickled("CIFAR10", "data_batch_1", labels=[0, 1, 2, 0]), 'train/2: label "2"'),
    "a negative class": ("CIFAR10", pickled("CIFAR10", "data_batch_1", labels=[0, -1, 1, 0]), 'train/1: label "-1"'),
    "a word": ("CIFAR100", pickled("CIFAR100", "train", fine_labels=["ape", 1, 0, 1]), 'train/0: label "ape"'),
    "nothing": ("CIFAR100", pickled("CIFAR100", "train", fine_labels=[None, 1, 0, 1]), 'train/0: label "None"'),
    "no list": ("CIFAR100", pickled("CIFAR100", "train", fine_labels=7), "train: 'int' object is not iterable"),
    "fewer labels": ("CIFAR10", pickled("CIFAR10", "data_batch_1", labels=[0, 1]), "train has 4 images and 2 labels"),
    "fewer images": ("CIFAR10", pickled("CIFAR10", "data_batch_1", data=pixels(1, 3072)), "1 images and 4 labels"),
    "a wrong shape": ("CIFAR10", pickled("CIFAR10", "data_batch_1", data=pixels(4, 9)), "train: all the input array"),
    "words for pixels": ("CIFAR100", pickled("CIFAR100", "train", data=["x"] * 4), "train: cannot reshape array"),
    "floats": ("CIFAR100", pickled("CIFAR100", "train", data=np.ones((4, 3072))), 'image "train/1" cannot be read: '),
    "no classes": ("CIFAR10", pickled("CIFAR10", "batches.meta", label_names=[]), "train: its classes have no names"),
    "a class of MNIST": ("MNIST", mnist(IMAGES, LABELS + b"\0\1\7\12"), 'MNIST in .*, train/3: label "10" is'),
    "counts of MNIST": ("MNIST", mnist(IMAGES, idx(3)), "MNIST in .*, train has 4 images and 3 labels"),
    "floats in MNIST": ("MNIST", mnist(idx(4, 28, 28, kind=13), LABELS + bytes(4)), "torchvision cannot read MNIST in"),
    "flat images": ("MNIST", mnist(idx(4, 28), LABELS + bytes(4)), "torchvision cannot read MNIST in .*, train: "),
    "a class of STL10": ("STL10", stl10(bytes([1, 2, 3, 1])), 'STL10 in .*, train/2: label "2" is no class'),
    "zero in STL10": ("STL10", stl10(bytes([1, 0, 2, 1])), 'STL10 in .*, train/1: label "'),
    "counts of STL10": ("STL10", stl10(bytes([1, 2, 1])), "STL10 in .*, train has 4 images and 3 labels"),
    "no classes in STL10": ("STL10", stl10(bytes([1, 2, 1, 1]), ""), "train: its classes have no names"),
    "not a number": ("SVHN", svhn(np.array([[1], [np.nan], [1], [2]])), "torchvision cannot read SVHN in .*, train: "),
    "no class of SVHN": ("SVHN", svhn(np.array([[1], [-3], [1], [2]])), 'SVHN in .*, train/1: label "-3" is no class'),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_content_names_set_and_entry(tmp_path, case):
    name, write, message = WRONG[case]
    write(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        everything(f"torchvision:{name}@{tmp_path}")
    assert caught.value.hint and "\n" not in caught.value.message


def test_every_wrong_label_is_reported(tmp_path):
    pickled("CIFAR10", "data_batch_1", labels=[0, 5, -1, 1])(tmp_path)
    data, found = problems(f"torchvision:CIFAR10@{tmp_path}")
    assert [re.search(r'train/\d: label "-?\d"', error.message) is not None for error in found] == [True, True]
    assert len(data) == 2
