"""Small data sets in the layouts that torchvision expects, of two classes: their labels are `SPLITS`, or `WHOLE`."""

from __future__ import annotations

import bz2
import json
import pickle
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.io import savemat
from torchvision import datasets

from support.reader_samples import picture

SPLITS = {"train": [0, 1, 0, 1], "val": [1, 0], "test": [1, 1, 0]}
WHOLE = [0] * 20 + [1] * 20
CLASSES = ("ape", "bee")


def pixels(count: int, *shape: int) -> np.ndarray:
    return np.full((count, *shape), 100, np.uint8)


def mnist(root: Path, name: str) -> None:
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    for split, kind in (("train", "train"), ("test", "t10k")):
        count = len(SPLITS[split])
        images = struct.pack(">IIII", 0x803, count, 28, 28) + pixels(count, 28, 28).tobytes()
        (folder / f"{kind}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{kind}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + bytes(SPLITS[split]))


def cifar(root: Path, name: str, splits: Mapping[str, list[int]] = SPLITS, names: Sequence[str] = CLASSES) -> None:
    cls = getattr(datasets, name)
    folder = root / cls.base_folder
    folder.mkdir()
    for files, split in ((cls.train_list, "train"), (cls.test_list, "test")):
        for number, (file, _) in enumerate(files):
            labels = splits[split] if number == 0 else []
            content = {"data": pixels(len(labels), 3072), "labels" if name == "CIFAR10" else "fine_labels": labels}
            (folder / file).write_bytes(pickle.dumps(content))
    (folder / cls.meta["filename"]).write_bytes(pickle.dumps({cls.meta["key"]: names}))


def svhn(root: Path, name: str) -> None:
    for split in ("train", "test"):
        labels = np.array(SPLITS[split])[:, None]
        savemat(root / f"{split}_32x32.mat", {"X": pixels(32, 32, 3, len(labels)), "y": np.where(labels, labels, 10)})


def stl10(root: Path, name: str) -> None:
    folder = root / "stl10_binary"
    folder.mkdir()
    for split in ("train", "test"):
        pixels(len(SPLITS[split]), 3, 96, 96).tofile(folder / f"{split}_X.bin")
        (np.array(SPLITS[split], np.uint8) + 1).tofile(folder / f"{split}_y.bin")
    (folder / "class_names.txt").write_text("ape\nbee\n")


def usps(root: Path, name: str) -> None:
    for split, file in (("train", "usps.bz2"), ("test", "usps.t.bz2")):
        cells = " ".join(f"{index}:0.5" for index in range(1, 257))
        (root / file).write_bytes(bz2.compress("\n".join(f"{label + 1} {cells}" for label in SPLITS[split]).encode()))


def semeion(root: Path, name: str) -> None:
    np.savetxt(root / "semeion.data", np.concatenate([np.ones((40, 256)), np.eye(10)[WHOLE]], 1))


def flowers(root: Path, name: str) -> None:
    labels = [label for split in SPLITS.values() for label in split]
    for number in range(1, len(labels) + 1):
        picture(root / f"flowers-102/jpg/image_{number:05}.jpg")
    savemat(root / "flowers-102/setid.mat", {"trnid": [1, 2, 3, 4], "valid": [5, 6], "tstid": [7, 8, 9]})
    savemat(root / "flowers-102/imagelabels.mat", {"labels": np.array(labels) + 1})


def cars(root: Path, name: str) -> None:
    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    for split, file in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = [(picture(base / f"cars_{split}/{i}.jpg").name, label + 1) for i, label in enumerate(SPLITS[split])]
        savemat(base / file, {"annotations": np.array(rows, dtype=[("fname", object), ("class", object)])})
    savemat(base / "devkit/cars_meta.mat", {"class_names": np.array(CLASSES, dtype=object)})


def dtd(root: Path, name: str) -> None:
    for split, labels in SPLITS.items():
        paths = [f"{CLASSES[label]}/{split}{number}.jpg" for number, label in enumerate(labels)]
        _write(root / "dtd/dtd", "images/{}", paths, f"labels/{split}1.txt", "{}\n", paths)


def food101(root: Path, name: str) -> None:
    for split in ("train", "test"):
        listed: dict[str, list[str]] = {}
        for number, label in enumerate(SPLITS[split]):
            picture(root / f"food-101/images/{CLASSES[label]}/{split}{number}.jpg")
            listed.setdefault(CLASSES[label], []).append(f"{CLASSES[label]}/{split}{number}")
        (root / "food-101/meta").mkdir(exist_ok=True)
        (root / f"food-101/meta/{split}.json").write_text(json.dumps(listed))


def aircraft(root: Path, name: str) -> None:
    for split, labels in SPLITS.items():
        lines = [f"{split}{number} {CLASSES[label]}" for number, label in enumerate(labels)]
        images = [f"{line.split()[0]}.jpg" for line in lines]
        base = root / "fgvc-aircraft-2013b/data"
        _write(base, "images/{}", images, f"images_variant_{split}.txt", "{}\n", lines)
        (base / "variants.txt").write_text("ape\nbee\n")


def pets(root: Path, name: str) -> None:
    for split in ("train", "test"):
        images = [f"{CLASSES[label]}_{split}{number}" for number, label in enumerate(SPLITS[split])]
        lines = [f"{image} {label + 1} 1 1" for image, label in zip(images, SPLITS[split], strict=True)]
        file = f"annotations/{'trainval' if split == 'train' else split}.txt"
        _write(root / "oxford-iiit-pet", "images/{}.jpg", images, file, "{}\n", lines)


def gtsrb(root: Path, name: str) -> None:
    base = root / "gtsrb"
    for number, label in enumerate(SPLITS["train"]):
        picture(base / f"GTSRB/Training/{label:05}/{number}.ppm")
    lines = ["Filename;ClassId", *(f"{number}.ppm;{label}" for number, label in enumerate(SPLITS["test"]))]
    _write(base, "GTSRB/Final_Test/Images/{}.ppm", list("012"), "GT-final_test.csv", "{}\n", lines)


def folders(root: Path, name: str) -> None:
    """The sets that keep a folder of images for each class, in each split or altogether."""
    template, names = {
        "Country211": ("country211/{valid}/{name}/{split}{number}.jpg", CLASSES),
        "Imagenette": ("imagenette2/{last}/{name}/{split}{number}.jpeg", ("n01440764", "n02102040")),
        "RenderedSST2": ("rendered-sst2/{valid}/{name}/{split}{number}.png", ("negative", "positive")),
        "EuroSAT": ("eurosat/2750/{name}/{split}{number}.jpg", CLASSES),
        "Caltech101": ("caltech101/101_ObjectCategories/{name}/image_{place:04}.jpg", CLASSES),
        "Caltech256": ("caltech256/256_ObjectCategories/{name}/{label:03}_{place:04}.jpg", ("001.ape", "002.bee")),
    }[name]
    splits = {"train": WHOLE} if name in ("EuroSAT", "Caltech101", "Caltech256") else SPLITS
    for split, labels in splits.items():
        last = {"val": "unused", "test": "val"}.get(split, split)
        for number, label in enumerate(labels):
            places = {"valid": split.replace("val", "valid"), "last": last, "place": number % 20 + 1}
            picture(root / template.format(name=names[label], split=split, number=number, label=label + 1, **places))
    if name == "Caltech101":
        (root / "caltech101/101_ObjectCategories/BACKGROUND_Google").mkdir()
        (root / "caltech101/Annotations").mkdir()


def _write(base: Path, template: str, images: list[str], file: str, line: str, lines: list[str]) -> None:
    for image in images:
        picture(base / template.format(image))
    (base / file).parent.mkdir(parents=True, exist_ok=True)
    (base / file).write_text("".join(line.format(text) for text in lines))


MADE = {
    "CIFAR10": cifar, "CIFAR100": cifar, "MNIST": mnist, "FashionMNIST": mnist, "KMNIST": mnist, "SVHN": svhn,
    "STL10": stl10, "USPS": usps, "SEMEION": semeion, "Flowers102": flowers, "StanfordCars": cars, "DTD": dtd,
    "Food101": food101, "FGVCAircraft": aircraft, "OxfordIIITPet": pets, "GTSRB": gtsrb, "Country211": folders,
    "Imagenette": folders, "RenderedSST2": folders, "EuroSAT": folders, "Caltech101": folders, "Caltech256": folders,
}  # fmt: skip
"""What writes each of them, of ``(root, name)``."""
HASHED = ("cifar", "svhn", "stl10", "semeion", "flowers102")
"""The modules of torchvision that compare files with a known hash."""
