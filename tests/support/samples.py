"""A small valid data set for every registered reader, for the tests that spoil it.

To add one: write ``def make_NAME(root, names) -> Made`` and put it into `GENERATORS` under the reader's id.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from support.samples_made import CLASSES, HEIGHT, OUTSIDE, WIDTH, Edit, Generator, Made, divided, picture, text
from support.samples_maps import make_cityscapes, make_masks, make_nyud, make_pascal_context


def make_folder(root: Path, names: Sequence[str]) -> Made:
    """Class folders, with lists of files."""
    labels = {name: CLASSES[number % 2] for number, name in enumerate(names)}
    images = [picture(root / labels[name] / f"{name}.png", number) for number, name in enumerate(names)]
    lists = [
        text(root / f"{split}.txt", "".join(f"{labels[name]}/{name}.png {labels[name]}\n" for name in members))
        for split, members in divided(names).items()
    ]
    order = text(root / "classes.txt", "\n".join(CLASSES))
    first = f"{labels[names[0]]}/{names[0]}.png {labels[names[0]]}\n"
    edits = (
        Edit("twice, of another class", lists[0], first, first + first.replace(" big cat", f" {CLASSES[1]}")),
        Edit("absolute", lists[0], first, f"{root.parent / OUTSIDE} big cat\n"),
        Edit("outside", lists[0], first, f"../{OUTSIDE} big cat\n"),
        Edit("outside, no label", lists[0], first, f"../{OUTSIDE}\n"),
        Edit("null byte", lists[0], first, "big cat/\0.png big cat\n"),
        Edit("long", lists[0], first, "x" * 5000 + "\n"),
        Edit("a folder", lists[0], first, "big cat big cat\n"),
        Edit("two files", lists[0], ".png big cat\n", ".png "),
        Edit("class twice", order, CLASSES[0], f"{CLASSES[0]}\n{CLASSES[0]}"),
        Edit("class missing", order, CLASSES[0], "cow", named="classes.txt"),
    )
    return Made(f"folder:{root}", root, ("label",), tuple(images), texts=(*lists, order), edits=edits)


def make_csv(root: Path, names: Sequence[str]) -> Made:
    """One table with a column of splits; names with commas need the quotes."""
    rows = []
    for split, members in divided(names).items():
        rows += [f'"images/{name}.png","{CLASSES[number % 2]}",{split}\n' for number, name in enumerate(members)]
    images = [picture(root / "images" / f"{name}.png", number) for number, name in enumerate(names)]
    table = text(root / "data.csv", "path,label,split\n" + "".join(rows))
    first = f'"images/{names[0]}.png"'
    edits = (
        Edit("absolute", table, first, f'"{root.parent / OUTSIDE}"'),
        Edit("outside", table, first, f'"../{OUTSIDE}"'),
        Edit("null byte", table, first, '"images/\0.png"'),
        Edit("long", table, first, "x" * 5000),
        Edit("no path", table, first, '""'),
        Edit("a folder", table, first, '"images"'),
        Edit("twice", table, rows[0], rows[0] * 2),
        Edit("another label", table, rows[0], rows[0] + rows[0].replace(CLASSES[0], CLASSES[1])),
        Edit("two splits", table, rows[0], rows[0] + rows[0].replace("train", "test")),
        Edit("no label", table, f'{first},"{CLASSES[0]}"', f'{first},""'),
        Edit("NaN", table, f'{first},"{CLASSES[0]}"', f"{first},nan"),
        Edit("no such split", table, rows[0], rows[0].replace("train", "trian")),
        Edit("short row", table, rows[0], f"{first}\n"),
        Edit("long row", table, rows[0], rows[0].strip() + ",more\n"),
        Edit("open quote", table, rows[0], '"' + rows[0]),
        Edit("no column", table, "path,label", "paht,label"),
    )
    return Made(f"csv:{root}", root, ("label",), tuple(images), texts=(table,), edits=edits)


def make_list(root: Path, names: Sequence[str]) -> Made:
    """Lists of files and labels, parted by tabs."""
    images = [picture(root / "images" / f"{name}.png", number) for number, name in enumerate(names)]
    lists = [
        text(
            root / f"{split}.txt",
            "".join(f"images/{name}.png\t{CLASSES[number % 2]}\n" for number, name in enumerate(members)),
        )
        for split, members in divided(names).items()
    ]
    first = f"images/{names[0]}.png\t{CLASSES[0]}\n"
    edits = (
        Edit("absolute", lists[0], first, f"{root.parent / OUTSIDE}\tbig cat\n"),
        Edit("outside", lists[0], first, f"../{OUTSIDE}\tbig cat\n"),
        Edit("null byte", lists[0], first, "images/\0.png\tbig cat\n"),
        Edit("long", lists[0], first, "x" * 5000 + "\tbig cat\n"),
        Edit("no label", lists[0], first, f"images/{names[0]}.png\n"),
        Edit("another label", lists[0], first, first + first.replace(CLASSES[0], CLASSES[1])),
        Edit("two splits", lists[1], "\n", "\n" + first),
        Edit("a folder", lists[0], first, "images\tbig cat\n"),
        Edit("twice", lists[0], first, first * 2),
    )
    return Made(f"list:{root}", root, ("label",), tuple(images), texts=tuple(lists), edits=edits)


def make_torchvision(root: Path, names: Sequence[str]) -> Made:
    """Describable textures, as torchvision wants them; what it reads is named by split and number."""
    labels = {name: CLASSES[number % 2] for number, name in enumerate(names)}
    folder = root / "dtd/dtd/images"
    images = [picture(folder / labels[name] / f"{name}.jpg", number) for number, name in enumerate(names)]
    lists = [
        text(
            root / f"dtd/dtd/labels/{split}1.txt",
            "".join(f"{labels[name]}/{name}.jpg\n" for name in members),
        )
        for split, members in divided(names).items()
    ]
    entries = [f"{split}/{number}" for split, members in divided(names).items() for number in range(len(members))]
    return Made(f"torchvision:DTD@{root}", root, ("label",), tuple(images), entries=tuple(entries), texts=tuple(lists))


def make_hf(root: Path, names: Sequence[str]) -> Made:
    """Saved to disk; images lie within its tables, which have a test of their own to spoil them."""
    library = pytest.importorskip("datasets")
    library.disable_progress_bars()
    kinds = library.Features({"image": library.Image(), "label": library.ClassLabel(names=list(CLASSES))})
    made = {}
    for split, members in divided(names).items():
        pictures = [picture(root.parent / f"{split}{n}.png", n) for n in range(len(members))]
        images = [{"bytes": file.read_bytes(), "path": None} for file in pictures]
        columns = {"image": images, "label": [number % 2 for number in range(len(members))]}
        made["validation" if split == "val" else split] = library.Dataset.from_dict(columns, features=kinds)
    library.DatasetDict(made).save_to_disk(root)
    return Made(f"hf:{root}", root, ("label",), ())


def make_voc(root: Path, names: Sequence[str]) -> Made:
    """Two boxes in each image, one of each class."""
    images = [picture(root / "JPEGImages" / f"{name}.png", number) for number, name in enumerate(names)]
    boxes = ((1, 2, 10, 12), (12, 3, 24, 16))
    objects = "".join(
        f"<object><name>{escape(label)}</name><difficult>{number}</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>\n"
        for number, (label, (x1, y1, x2, y2)) in enumerate(zip(CLASSES, boxes, strict=True))
    )
    head = '<?xml version="1.0" encoding="utf-8"?>\n'
    whole = f"{head}<annotation>\n<filename>x</filename>{objects}</annotation>\n"
    files = [text(root / "Annotations" / f"{name}.xml", whole) for name in names]
    lists = [
        text(root / "ImageSets" / "Main" / f"{split}.txt", "".join(f"{name}\n" for name in members))
        for split, members in divided(names).items()
    ]
    edits = (
        *(Edit(value, files[0], "<xmin>1<", f"<xmin>{value}<") for value in ("nan", "inf", "1e999", "1_0", "-1", "25")),
        Edit("no area", files[0], "<xmax>10<", "<xmax>1<"),
        Edit("no box", files[0], "<xmin>1</xmin>", ""),
        Edit("no name", files[0], f"<name>{CLASSES[0]}</name>", ""),
        Edit("difficult", files[0], "<difficult>0<", "<difficult>perhaps<"),
        Edit("encoding", files[0], 'encoding="utf-8"', 'encoding="utf-9"'),
        Edit("another root", files[0], "annotation>", "html>"),
        Edit("no root", files[0], whole, head),
        Edit("twice", lists[0], f"{names[0]}\n", f"{names[0]}\n" * 2),
        Edit("outside", lists[0], f"{names[0]}\n", "../../outside\n"),
        Edit("absolute", lists[0], f"{names[0]}\n", f"{root.parent / 'outside'}\n"),
        Edit("null byte", lists[0], f"{names[0]}\n", "a\0b\n"),
        Edit("long", lists[0], f"{names[0]}\n", "x" * 5000 + "\n", named="too long"),
    )
    return Made(f"voc:{root}", root, ("boxes",), tuple(images), texts=(*lists, *files[:2]), edits=edits)


def make_coco(root: Path, names: Sequence[str]) -> Made:
    """Two polygons in each image, with their boxes."""
    images, files = [], []
    for split, members in divided(names).items():
        table: dict[str, list] = {"images": [], "annotations": [], "categories": []}
        table["categories"] = [{"id": 7 + number, "name": label} for number, label in enumerate(CLASSES)]
        for number, name in enumerate(members, 1):
            images.append(picture(root / split / f"{name}.png", len(images)))
            table["images"].append({"id": number, "file_name": f"{name}.png", "width": WIDTH, "height": HEIGHT})
            for kind, (x, y) in enumerate(((1, 2), (12, 4))):
                shape = [x, y, x + 8, y, x + 8, y + 10, x, y + 10]
                table["annotations"].append(
                    {
                        "id": 10 * number + kind, "image_id": number, "category_id": 7 + kind, "bbox": [x, y, 8, 10],
                        "area": 80, "iscrowd": 0, "segmentation": [shape],
                    }
                )  # fmt: skip
        content = json.dumps(table, ensure_ascii=False, indent=0)
        files.append(text(root / "annotations" / f"{split}.json", content))
    first, name = files[0], f'"file_name": "{names[0]}.png"'
    box = '"bbox": [\n1,\n2,\n8,\n10\n]'
    numbers = ("NaN", "Infinity", "-1", "1e999", '"1"', "null", "[1]", "true", "{}")
    edits = (
        *(Edit(f"box {value}", first, box, f'"bbox": [{value}, 2, 8, 10]') for value in numbers),
        *(
            Edit(f"box {value}", first, box, f'"bbox": {value}')
            for value in ("[]", "[1, 2, 8]", "3", '"1,2,8,10"', "{}")
        ),
        Edit("no area", first, box, '"bbox": [1, 2, 0, 10]'),
        Edit("outside of the image", first, box, '"bbox": [20, 2, 8, 10]'),
        Edit("image twice", first, '"id": 2,', '"id": 1,'),
        Edit("annotation twice", first, '"id": 20,', '"id": 10,'),
        Edit("category twice", first, '"id": 8,', '"id": 7,'),
        Edit("class twice", first, CLASSES[1], CLASSES[0]),
        Edit("no such image", first, '"image_id": 1,', '"image_id": 99,'),
        Edit("no such category", first, '"category_id": 7,', '"category_id": 99,'),
        Edit("no image id", first, '"image_id": 1,', ""),
        Edit("image id", first, '"image_id": 1,', '"image_id": [],'),
        Edit("annotations of another kind", first, '"annotations": [', '"annotations": 3, "x": ['),
        Edit("no annotations", first, '"annotations":', '"anotations":'),
        Edit("no images", first, '"images":', '"pictures":'),
        Edit("absolute", first, name, f'"file_name": "{root.parent / OUTSIDE}"'),
        Edit("outside", first, name, f'"file_name": "../../{OUTSIDE}"'),
        Edit("null byte", first, name, '"file_name": "\\u0000.png"'),
        Edit("a number", first, name, '"file_name": 7'),
        Edit("nothing", first, name, '"file_name": ""'),
        Edit("long", first, name, '"file_name": "' + "x" * 5000 + '"'),
        Edit("another size", first, f'"width": {WIDTH}', '"width": 77'),
        Edit("deep", first, '"categories": [', '"deep": ' + "[" * 100_000 + '], "categories": ['),
    )
    return Made(f"coco:{root}", root, ("boxes", "mask"), tuple(images), texts=tuple(files), edits=edits)


def make_yolo(root: Path, names: Sequence[str]) -> Made:
    """Two boxes in each image, as fractions of its sides."""
    lines = "0 0.25 0.25 0.25 0.25\n1 0.5 0.5 0.25 0.25\n"
    images, labels = [], []
    for split, members in divided(names).items():
        for name in members:
            images.append(picture(root / "images" / split / f"{name}.png", len(images)))
            labels.append(text(root / "labels" / split / f"{name}.txt", lines))
    order = "\n".join(f"  {number}: {label}" for number, label in enumerate(CLASSES))
    splits = "".join(f"{split}: images/{split}\n" for split in divided(names))
    yaml = text(root / "data.yaml", f"{splits}names:\n{order}\n")
    box, first = "0 0.25 0.25 0.25 0.25\n", labels[0]
    edits = (
        *(
            Edit(value, first, box, f"0 {value} 0.25 0.25 0.25\n")
            for value in ("nan", "inf", "x", "1e999", "0_5", "12")
        ),
        Edit("no area", first, box, "0 0.25 0.25 0 0.25\n"),
        Edit("short", first, box, "0 0.25 0.25 0.25\n"),
        Edit("no such class", first, box, "2 0.25 0.25 0.25 0.25\n"),
        Edit("negative class", first, box, "-1 0.25 0.25 0.25 0.25\n"),
        Edit("half a class", first, box, "0.5 0.25 0.25 0.25 0.25\n"),
        Edit("absolute", yaml, "train: images/train", f"train: {root.parent}"),
        Edit("outside", yaml, "train: images/train", "train: images/../../.."),
        Edit("no such folder", yaml, "train: images/train", "train: images/nowhere"),
        Edit("no names", yaml, "names:", "nmaes:"),
        Edit("class twice", yaml, CLASSES[1], CLASSES[0]),
        Edit("names of another kind", yaml, f"names:\n{order}", "names: 7"),
        Edit("code", yaml, "names:", "x: !!python/object/apply:os.system [ls]\nnames:"),
    )
    return Made(
        f"yolo:{root}", root, ("boxes",), tuple(images), texts=(yaml, *labels[:2]), optional=tuple(labels), edits=edits
    )  # fmt: skip


GENERATORS: dict[str, Generator] = {
    "cityscapes": make_cityscapes,
    "coco": make_coco,
    "csv": make_csv,
    "folder": make_folder,
    "hf": make_hf,
    "list": make_list,
    "masks": make_masks,
    "nyud": make_nyud,
    "pascal-context": make_pascal_context,
    "torchvision": make_torchvision,
    "voc": make_voc,
    "yolo": make_yolo,
}
