"""What the recipes of published data sets expect to find, in small: tiny images, few classes, the published names.

Each makes the data of one recipe in a folder, where its test split has ``test`` images of each class.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from support import image_set_samples, torchvision_samples
from support.image_set_samples import save, texts
from support.reader_samples import picture, vtab

DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
FGVC = {
    "CUB_200_2011": "images", "nabirds": "images", "OxfordFlower": "", "Stanford-dogs": "Images", "Stanford-cars": "",
}  # fmt: skip
VTAB = (
    "cifar", "caltech101", "dtd", "oxford_flowers102", "oxford_iiit_pet", "svhn", "sun397",
    "patch_camelyon", "eurosat", "resisc45", "diabetic_retinopathy",
    "clevr_count", "clevr_dist", "dmlab", "kitti", "dsprites_loc", "dsprites_ori", "smallnorb_azi", "smallnorb_ele",
)  # fmt: skip
HELD = (3, 7, 10)
"""The sessions of CORe50 that are tested on."""
OBJECT = (
    "<annotation><object><name>{}</name><difficult>0</difficult>"
    "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>8</xmax><ymax>6</ymax></bndbox></object></annotation>"
)


def vtab_1k(root: Path, test: int) -> None:
    """In which some classes are shown in validation or testing only, as in the published splits."""
    for task in VTAB:
        base = root / "vtab-1k" / task
        vtab(base, 2 * test)
        for label, names in ((4, ("val200", "train800val200")), (5, ("test",))):
            path = f"images/{names[0]}/other.jpg"
            picture(base / path)
            for name in names:
                (base / f"{name}.txt").write_text(f"{path} {label}\n" + (base / f"{name}.txt").read_text())


def fgvc(root: Path, test: int) -> None:
    for name, images in FGVC.items():
        base = root / "fgvc" / name
        for split, count in (("train", 6), ("val", 2), ("test", test)):
            labels = {f"{kind}/{split}{i}.jpg": kind for kind in (1, 2) for i in range(count)}
            for path in labels:
                picture(base / images / path)
            (base / f"{split}.json").write_text(json.dumps(labels))


def coco(root: Path, test: int) -> None:
    base, categories = root / "coco", [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}]
    (base / "annotations").mkdir(parents=True)
    for split, numbers in (("train", range(20)), ("val", range(100, 100 + test))):
        images, objects = [], []
        for number in numbers:
            name = picture(base / f"{split}2017" / f"{number:012}.jpg").name
            images.append({"id": number, "file_name": name, "width": 12, "height": 8})
            objects.append({"id": number, "image_id": number, "category_id": (1, 90)[number % 2], "bbox": [1, 1, 6, 5]})
        found = {"images": images, "annotations": objects, "categories": categories}
        (base / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(found))


def voc(root: Path, test: int) -> None:
    base = root / "VOCdevkit" / "VOC2012"
    lists = {"train": [f"2008_{i:06}" for i in range(20)], "val": [f"2009_{i:06}" for i in range(test)]}
    for number, name in enumerate(name for names in lists.values() for name in names):
        picture(base / "JPEGImages" / f"{name}.jpg")
        (base / "Annotations").mkdir(exist_ok=True)
        (base / "Annotations" / f"{name}.xml").write_text(OBJECT.format(("cat", "sofa")[number % 2]))
        save(base / "SegmentationClass" / f"{name}.png", np.full((8, 12), number % 3, np.uint8))
    for kind in ("Main", "Segmentation"):
        texts(base / "ImageSets" / kind, **lists)


def ade20k(root: Path, test: int) -> None:
    base = root / "ADEChallengeData2016"
    for split, count in (("training", 20), ("validation", test)):
        for number in range(count):
            name = f"ADE_{split[:-3]}_{number:08}"
            picture(base / "images" / split / f"{name}.jpg")
            save(base / "annotations" / split / f"{name}.png", np.full((8, 12), number % 4, np.uint8))
    lines = [f"{value}\t0.1\t10\t1\t1\t{name}" for value, name in enumerate(("wall", "building, edifice", "sky"), 1)]
    (base / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tStuff\tName", *lines]))


def pascal_context(root: Path, test: int) -> None:
    image_set_samples.pascal(root / "PASCAL_MT", 2 * test)


def nyud(root: Path, test: int) -> None:
    image_set_samples.nyud(root / "NYUD_MT", test)


def cifar100(root: Path, test: int) -> None:
    root.mkdir(parents=True)
    names = [f"class {number:02}" for number in range(20)]
    torchvision_samples.cifar(root, "CIFAR100", {"train": [*range(20)] * 4, "test": [*range(20)] * test}, names)


def folders(name: str) -> Callable[[Path, int], None]:
    def made(root: Path, test: int) -> None:
        for split, count in (("train", 4), ("test", test)):
            for kind in range(20):
                for number in range(count):
                    picture(root / name / split / f"n{kind:08}" / f"{number}.jpg")

    return made


def domainnet(root: Path, test: int) -> None:
    base = root / "domainnet"
    for domain in DOMAINS:
        for split, count in (("train", 4), ("test", test)):
            names = [f"{domain}/{kind}/{split}_{i}.jpg" for kind in ("bat", "owl") for i in range(count)]
            _listed(base / f"{domain}_{split}.txt", base, [(name, int("owl" in name)) for name in names])


def core50(root: Path, test: int) -> None:
    base, lists = root / "core50", root / "core50" / "batches_filelists" / "NI_inc" / "run0"
    rows = {session: _session(session, test if session in HELD else 4) for session in range(1, 12)}
    for number, session in enumerate(session for session in rows if session not in HELD):
        _listed(lists / f"train_batch_{number:02}_filelist.txt", base / "core50_128x128", rows[session])
    _listed(lists / "test_filelist.txt", base / "core50_128x128", [row for held in HELD for row in rows[held]])


def _session(number: int, count: int) -> list[tuple[str, int]]:
    names = [(f"s{number}/o{kind}/C_{number:02}_{kind:02}_{i:03}.png", kind) for kind in (1, 2) for i in range(count)]
    return [(name, kind - 1) for name, kind in names]


def _listed(file: Path, root: Path, rows: Iterable[tuple[str, int]]) -> None:
    """A list ``path label``, and the images that it names."""
    rows = list(rows)
    for path, _ in rows:
        picture(root / path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{path} {label}\n" for path, label in rows))


LAYOUTS: dict[str, Callable[[Path, int], None]] = {
    "vtab-1k": vtab_1k,
    "fgvc": fgvc,
    "coco-detection": coco,
    "voc-detection": voc,
    "voc-segmentation": voc,
    "ade20k": ade20k,
    "pascal-context": pascal_context,
    "nyud-v2": nyud,
    "cifar100-10": cifar100,
    "imagenet-r-10": folders("imagenet-r"),
    "imagenet-a-10": folders("imagenet-a"),
    "cub-10": folders("cub"),
    "domainnet": domainnet,
    "core50": core50,
}
"""By the recipe's name."""
