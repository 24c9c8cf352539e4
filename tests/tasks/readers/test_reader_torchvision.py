"""Every data set of torchvision that is read by name, generated in the layout that torchvision expects."""

from __future__ import annotations

from importlib import import_module

import pytest
from support.reader_samples import labels, names, read
from support.torchvision_samples import HASHED, MADE, SPLITS

from mtpeft.api import DataError, UsageError
from mtpeft_tasks.readers.torchvision import KNOWN

HELD_OUT = {"train": [14, 14], "val": [2, 2], "test": [4, 4]}


@pytest.fixture(autouse=True)
def any_hash(monkeypatch):
    for module in HASHED:
        monkeypatch.setattr(import_module(f"torchvision.datasets.{module}"), "check_integrity", lambda *_: True)


@pytest.mark.parametrize("name", KNOWN)
def test_every_data_set(tmp_path, name):
    MADE[name](tmp_path, name)
    parts = {split: read(f"torchvision:{name}@{tmp_path}", split) for split in SPLITS}
    classes = parts["train"].classes
    assert len(classes) == (10 if "MNIST" in name else 2) and all(part.classes == classes for part in parts.values())
    found = {split: sorted(labels(part)) for split, part in parts.items()}
    if "test" not in KNOWN[name].splits:
        assert {split: [each.count(name) for name in classes] for split, each in found.items()} == HELD_OUT
        return
    expected = {split: sorted(classes[label] for label in given) for split, given in SPLITS.items()}
    assert found["test"] == expected["test"]
    if "val" in KNOWN[name].splits:
        assert found == expected
    else:
        assert sorted(found["train"] + found["val"]) == expected["train"] and len(found["val"]) == 2


NAMED = {
    "CIFAR100": ("ape", "bee"), "OxfordIIITPet": ("Ape", "Bee"), "SVHN": ("0", "1"), "GTSRB": ("0", "1"),
    "Imagenette": ("tench, Tinca tinca", "English springer, English springer spaniel"), "Caltech101": ("ape", "bee"),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_classes_and_items(tmp_path, name):
    MADE[name](tmp_path, name)
    data = read(f"torchvision:{name}@{tmp_path}")
    assert data.classes == NAMED[name] and data[0].image.mode == "RGB"
    assert all(item.startswith("train/") for item in names(data)) and data.manifest()["count"] == len(data)


def test_nothing_is_downloaded_unless_asked_for(tmp_path, monkeypatch):
    asked = []

    def cifar(root, *, train, download):
        asked.append((root, train, download))
        raise RuntimeError("Dataset not found or corrupted. You can use download=True to download it")

    monkeypatch.setattr("torchvision.datasets.CIFAR100", cifar)
    with pytest.raises(DataError, match="torchvision cannot read CIFAR100") as caught:
        read(f"torchvision:CIFAR100@{tmp_path}")
    assert caught.value.message.endswith(": Dataset not found or corrupted")
    assert "?download=true" in caught.value.hint
    with pytest.raises(DataError, match='none" does not exist'):
        read(f"torchvision:CIFAR100@{tmp_path / 'none'}")
    with pytest.raises(DataError, match="cannot read CIFAR100"):
        read(f"torchvision:CIFAR100@{tmp_path / 'none'}?download=true")
    assert asked == [(str(tmp_path), True, False), (str(tmp_path / "none"), True, True)]


def test_names_that_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"""torchvision's "CIFAR10O" is not among""") as caught:
        read(f"torchvision:CIFAR10O@{tmp_path}")
    assert 'did you mean "CIFAR10' in caught.value.hint
    for place in ("CIFAR10", "CIFAR10@"):
        with pytest.raises(UsageError, match="names no folder") as caught:
            read(f"torchvision:{place}")
        assert caught.value.hint == "for example torchvision:CIFAR10@data"


def test_files_that_are_broken(tmp_path):
    MADE["MNIST"](tmp_path, "MNIST")
    file = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match="torchvision cannot read MNIST"):
        read(f"torchvision:MNIST@{tmp_path}")
    MADE["EuroSAT"](tmp_path, "EuroSAT")
    for image in (tmp_path / "eurosat/2750").rglob("*.jpg"):
        image.write_bytes(image.read_bytes()[:-100])
    with pytest.raises(DataError, match=r'image "train/0" cannot be read: (?i:.*truncated)'):
        read(f"torchvision:EuroSAT@{tmp_path}").source.image("train/0")


def test_a_class_that_the_training_split_lacks(tmp_path):
    MADE["DTD"](tmp_path, "DTD")
    (tmp_path / "dtd/dtd/labels/test1.txt").write_text("cow/test0.jpg\n")
    with pytest.raises(DataError, match=rf'DTD in "{tmp_path}", test/0 has class "cow", which is not in "train"'):
        read(f"torchvision:DTD@{tmp_path}", "test")
