"""What it costs to load a training sample, beside torchvision's own data sets and transforms.

    python benchmarks/loading.py --rounds 6

Draws 64 images of 500 x 375 pixels with the detail of photographs (JPEG, about 70 kB each), with a class, boxes and an
index mask each. Both sides give batches of 16 at 224 pixels with the same augmentation: a crop, a mirror image,
brightness and contrast, normalisation. Everything takes turns, and the least CPU time of one thread counts. Writes
`results/loading.md` and `.json`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import faster_coco_eval
import numpy as np
import torch
import torchvision
from PIL import Image
from step_cases import Data, hosted
from step_costs import interleaved
from step_table import table
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import datasets, tv_tensors
from torchvision.transforms import InterpolationMode, v2

from mtpeft.backbone.features import ImageConfig
from mtpeft.data.decoded_cache import Decoded
from mtpeft.data.loading import Samples, Source, batches
from mtpeft.plugins import resolve

RESULTS = Path(__file__).with_name("results")
IMAGES, BATCH, SIZE = 64, 16, 224
HEIGHT, WIDTH = 375, 500
CLASSES = ("ant", "bee", "cat", "dog")
IMAGE = ImageConfig((SIZE, SIZE), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
INTRODUCTION = """\
# What loading costs

{images} images of {width} x {height} pixels (JPEG, {bytes:.0f} kB on average), batches of {batch} at {size} pixels:
crop, mirror, brightness and contrast, normalisation; one thread, CPU time of an image, least of {rounds} interleaved
rounds, torch {torch}, torchvision {torchvision}. `torchvision`: its data set and v2 transforms in a plain `DataLoader`.
The others relative to it: `mtpeft`, the reader and the task's transform; `cached`, the same from a filled cache;
`step`, a training step of ViT-Ti/16 with LoRA at that size, for one image: what loading has to keep up with.
Made by `python benchmarks/loading.py --rounds {rounds}`.
"""


def draw(root: Path) -> float:
    """Images as class folders, COCO boxes and index masks; returns the mean size of a JPEG in kB."""
    generator = torch.Generator().manual_seed(0)
    boxes, images = [], []
    (root / "masks").mkdir(parents=True)
    (root / "images").mkdir()
    for number in range(IMAGES):
        name = f"{number:03d}"
        drawn = picture(number)
        for place in (root / "images" / f"{name}.jpg", root / "folder" / CLASSES[number % 4] / f"{name}.jpg"):
            place.parent.mkdir(parents=True, exist_ok=True)
            drawn.save(place, quality=90)
        rows = torch.arange(HEIGHT).mul(4).div(HEIGHT, rounding_mode="floor").to(torch.uint8)
        Image.fromarray(rows[:, None].expand(HEIGHT, WIDTH).contiguous().numpy()).save(root / f"masks/{name}.png")
        images.append({"id": number, "file_name": f"{name}.jpg", "width": WIDTH, "height": HEIGHT})
        for _ in range(3):
            x, y = (torch.rand(2, generator=generator) * torch.tensor([300, 200])).tolist()
            about = {"id": len(boxes) + 1, "image_id": number, "category_id": len(boxes) % 4 + 1, "iscrowd": 0}
            boxes.append(about | {"bbox": [x, y, 150.0, 120.0], "area": 18000.0})
    categories = [{"id": index, "name": name} for index, name in enumerate(CLASSES, 1)]
    text = json.dumps({"images": images, "annotations": boxes, "categories": categories})
    (root / "boxes.json").write_text(text)
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return float(np.mean([file.stat().st_size for file in (root / "images").iterdir()]) / 1000)


def picture(seed: int) -> Image.Image:
    """Noise at all scales, finer ones weaker, as in photographs."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.full((1, 3, HEIGHT, WIDTH), 0.5)
    for octave in range(8):
        noise = torch.randn(1, 3, 3 * 2**octave, 4 * 2**octave, generator=generator)
        pixels += 0.25 * 0.75**octave * F.interpolate(noise, (HEIGHT, WIDTH), mode="bilinear")
    return Image.fromarray((pixels[0].clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy())


def of_torchvision(root: Path, kind: str) -> Callable[[], object]:
    """One epoch of its data set, transforms and loader."""
    crop = v2.RandomResizedCrop(SIZE, (0.7, 1.0), (0.91, 1.1), InterpolationMode.BICUBIC, antialias=True)
    steps = [v2.ToImage(), crop, v2.RandomHorizontalFlip(), v2.ColorJitter(0.2, 0.2)]
    steps += [v2.SanitizeBoundingBoxes()] if kind == "det" else []
    steps += [v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.uint8, "others": None}, scale=True)]
    transform = v2.Compose([*steps, v2.Normalize(IMAGE.mean, IMAGE.std)])
    faster_coco_eval.init_as_pycocotools()  # what torchvision imports under that name
    if kind == "cls":
        data: Any = datasets.ImageFolder(str(root / "folder"), transform)
    elif kind == "det":
        data = datasets.CocoDetection(str(root / "images"), str(root / "boxes.json"), transforms=transform)
        data = datasets.wrap_dataset_for_transforms_v2(data, target_keys=("boxes", "labels"))
    else:
        data = Pairs(root, transform)
    collate = None if kind == "cls" else _lists
    loader = DataLoader(data, BATCH, shuffle=True, collate_fn=collate)
    return lambda: [batch for batch in loader]  # noqa: C416 (every batch is asked for, none kept aside)


class Pairs(torch.utils.data.Dataset):
    """Images with masks, as torchvision's segmentation sets read them: it has none for plain folders."""

    def __init__(self, root: Path, transform: Callable[..., Any]) -> None:
        self.images, self.masks = sorted((root / "images").iterdir()), sorted((root / "masks").iterdir())
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        image, mask = Image.open(self.images[index]).convert("RGB"), Image.open(self.masks[index])
        return self.transform(image, tv_tensors.Mask(np.array(mask)[None]))


def _lists(samples: list[Any]) -> Any:
    images, targets = zip(*samples, strict=True)
    return torch.stack(images), list(targets)


def ours(root: Path, kind: str, cache: Path | None = None) -> Callable[[], object]:
    """One epoch of the reader, the task's transform and the loader."""
    place = {"cls": f"folder:{root}/folder", "det": f"coco:{root}/boxes.json", "seg": f"masks:{root}"}
    task = resolve("tasks", kind)(data=place[kind], flip=True)
    data = task.dataset("train")
    samples = Samples({"one": Source(task, Decoded(data, cache) if cache else data)}, IMAGE, 0, train=True)
    order = [("one", index % len(data), index // len(data)) for index in range(IMAGES)]
    cut = [order[first : first + BATCH] for first in range(0, IMAGES, BATCH)]
    return lambda: [batch for batch in batches(samples, cut)]  # noqa: C416


def step(kind: str) -> Callable[[], object]:
    """A training step that would use one batch."""
    return hosted(Data(SIZE, BATCH), kind, resolve("methods", "lora")(), "loading", kind).step


def measure(root: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """One record for each task type: CPU seconds of an image."""
    for kind in ("cls", "det", "seg"):
        ways = [of_torchvision(root, kind), ours(root, kind), ours(root, kind, root / "cache" / kind)]
        epochs = interleaved(ways, rounds)
        (trained,) = interleaved([step(kind)], 2)
        names = ("torchvision", "mtpeft", "cached")
        yield {"type": kind, **{n: s / IMAGES for n, s in zip(names, epochs, strict=True)}, "step": trained / BATCH}


def report(found: dict[str, Any]) -> str:
    """The page."""
    rows = []
    for case in found["tasks"]:
        plain = case["torchvision"]
        rows.append(
            [case["type"], f"{1000 * plain:.2f} ms"]
            + [f"{case[way] / plain:.2f}" for way in ("mtpeft", "cached", "step")]
        )
    heading = ["task", "torchvision", "mtpeft", "cached", "step"]
    return f"{INTRODUCTION.format(**found)}\n" + table(heading, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    found: dict[str, Any] = {
        "rounds": options.rounds,
        **versions,
        "images": IMAGES,
        "batch": BATCH,
        "size": SIZE,
        "width": WIDTH,
        "height": HEIGHT,
    }
    with TemporaryDirectory() as folder:
        found["bytes"] = draw(Path(folder))
        found["tasks"] = list(measure(Path(folder), options.rounds))
    (RESULTS / "loading.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "loading.md").write_text(report(found))


if __name__ == "__main__":
    main()
