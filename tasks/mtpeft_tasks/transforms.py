"""From a sample to tensors, for every task type: boxes and maps (masks, depth, ...) move with the image.

Random draws come from torch's global generator alone. In training a target's boxes and maps are in the coordinates of
the transformed image; in evaluation they stay in the image's own, so that metrics are computed at its resolution.
Either way ``target["size"]`` is the ``(height, width)`` of the coordinates that the target is in.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from pydantic import Field
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from mtpeft.api import ImageConfig, NonNegative, Sample, Share, UsageError, did_you_mean
from mtpeft_tasks.maps import MAPS, Map

_ORIENTATION = 0x0112
Fit = Literal["stretch", "pad"]
Preset = Literal["none", "light", "standard"]
Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Augmentation:
    """How strongly training images vary; without arguments, lightly.

    Attributes:
        area: the cropped fraction of the image's area is drawn from this range.
        aspect: the crop's aspect ratio relative to the image's own is drawn log-uniformly from 1 / aspect to aspect.
        colour: brightness, contrast, saturation and hue jitter; hue up to 0.5.
        visible: a box is kept if at least this fraction of its area is inside the crop.
    """

    area: tuple[Annotated[float, Field(gt=0, le=1, description="a number above 0 and up to 1")], Share] = (0.7, 1.0)
    aspect: Annotated[float, Field(ge=1)] = 1.1
    colour: tuple[NonNegative, NonNegative, NonNegative, Annotated[float, Field(ge=0, le=0.5)]] = (0.2, 0.2, 0.0, 0.0)
    visible: Share = 0.4

    def __post_init__(self) -> None:
        if self.area[0] > self.area[1]:
            raise UsageError(f"augment.area = {list(self.area)} is no range", hint="give the smaller fraction first")


_SIDES = (("left", "right"), ("Left", "Right"), ("LEFT", "RIGHT"))
PRESETS = {
    "none": None,
    "light": Augmentation(),
    "standard": Augmentation(area=(0.35, 1.0), aspect=1.33, colour=(0.3, 0.3, 0.3, 0.02)),
}


def build(
    image: ImageConfig,
    *,
    train: bool,
    augment: Preset | Augmentation = "light",
    flip: bool = False,
    flip_pairs: Pairs = (),
    fit: Fit = "stretch",
) -> Transform:
    """The transform of a task.

    Args:
        image: what the backbone wants.
        train: augment, and move the target with the image.
        augment: ``none``, ``light`` or ``standard``, or how strongly in numbers (training only).
        flip: mirror half of the training images; wrong for digits.
        flip_pairs: classes that change places in a mirrored image.
        fit: ``stretch`` to the size, or keep the aspect ratio and ``pad`` at the right and bottom.

    Raises:
        UsageError: for an unknown preset or fit.
    """
    for name, value, known in (("augment", augment, PRESETS), ("fit", fit, ("stretch", "pad"))):
        if isinstance(value, str) and value not in known:
            raise UsageError(f'Unknown {name} "{value}".', hint=did_you_mean(value, known))
    chosen = PRESETS[augment] if isinstance(augment, str) else augment
    return Transform(image, chosen if train else None, train=train, flip=flip and train, flip_pairs=flip_pairs, fit=fit)


class Transform:
    """A sample to ``(image (3, H, W) float, target)``; made by `build`."""

    def __init__(
        self,
        image: ImageConfig,
        augment: Augmentation | None,
        *,
        train: bool,
        flip: bool,
        fit: Fit,
        flip_pairs: Pairs = (),
    ) -> None:
        self.image, self.augment, self.train, self.flip, self.fit = image, augment, train, flip, fit
        self.flip_pairs = flip_pairs
        self.mean = torch.tensor(image.mean).view(3, 1, 1)
        self.std = torch.tensor(image.std).view(3, 1, 1)
        self.interpolation = InterpolationMode(image.interpolation)
        self.colour = v2.ColorJitter(*augment.colour) if augment else None

    def __call__(self, sample: Sample) -> tuple[Tensor, dict[str, Any]]:
        picture = to_rgb(sample.image)
        size = (picture.height, picture.width)
        pixels = tv_tensors.Image(F.pil_to_tensor(picture))
        target = _tensors(sample.target)
        if not self.train:
            return self._normalise(self._fit(pixels)), {**target, "size": size}
        pixels, target = self._vary(pixels, _wrap(target, size))
        return self._normalise(pixels), {**_unwrap(target), "size": tuple(self.image.size)}

    def _vary(self, pixels: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        moves = []
        if self.augment is not None:
            window = _window((pixels.shape[-2], pixels.shape[-1]), self.augment)
            target = _keep_visible(target, window, self.augment.visible)
            moves.append(lambda value: F.crop(value, *window))
        if self.flip and torch.rand(()) < 0.5:
            moves.append(_mirror)
            target = _swapped(target, self.flip_pairs)
        for move in [*moves, self._fit]:
            pixels = move(pixels)
            target = {k: move(v) if isinstance(v, tv_tensors.TVTensor) else v for k, v in target.items()}
        return (self.colour(pixels) if self.colour else pixels), target

    def _fit(self, value: Tensor) -> Tensor:
        """Resize, and pad where asked: images with their mean, maps with what stands for no value."""
        size = tuple(F.get_size(value))
        height, width = content(size, self.image.size, self.fit)
        if isinstance(value, Map):
            value = value.resized(height, width)
        else:
            value = F.resize(value, [height, width], interpolation=self.interpolation, antialias=True)
        right, bottom = self.image.size[1] - width, self.image.size[0] - height
        if not right and not bottom:
            return value
        fill = value.missing if isinstance(value, Map) else [255 * mean for mean in self.image.mean]
        return F.pad(value, [0, 0, right, bottom], fill=fill)

    def _normalise(self, pixels: Tensor) -> Tensor:
        return (pixels.as_subclass(Tensor).float().div(255) - self.mean) / self.std


def content(size: tuple[int, int], image_size: tuple[int, int], fit: Fit = "stretch") -> tuple[int, int]:
    """Height and width of the region of the backbone's input that an image of ``size`` covers, from the top left."""
    if fit == "stretch":
        return int(image_size[0]), int(image_size[1])
    scale = min(image_size[0] / size[0], image_size[1] / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def boxes_to_size(boxes: Tensor, size: tuple[int, int], image_size: tuple[int, int], fit: Fit = "stretch") -> Tensor:
    """Boxes ``(N, 4)`` from the coordinates of the backbone's input to those of the image, cut at its border."""
    height, width = content(size, image_size, fit)
    scale = boxes.new_tensor([size[1] / width, size[0] / height] * 2)
    limit = boxes.new_tensor([size[1], size[0]] * 2)
    return torch.minimum((boxes * scale).clamp(min=0), limit)


def check_flip(classes: Sequence[str], pairs: Pairs) -> None:
    """Whether mirrored images keep true labels.

    Args:
        classes: of the data.
        pairs: those that change places.

    Raises:
        UsageError: for a class that the data does not have or that is in two pairs, and for classes named left and
            right that are in none.
    """
    paired = [name for pair in pairs for name in pair]
    for name in paired:
        if name not in classes:
            raise UsageError(f'flip_pairs: the data has no class "{name}"', hint=did_you_mean(name, classes))
        if paired.count(name) > 1:
            raise UsageError(f'flip_pairs: "{name}" is there twice', hint="a class is in one pair at most")
    others = [name for name in classes if name not in paired]
    swapped = [(name, name.replace(left, right)) for left, right in _SIDES for name in others if left in name]
    missing = [pair for pair in swapped if pair[1] in others]
    if missing:
        raise UsageError(
            f'flip mirrors images, but "{missing[0][0]}" would not become "{missing[0][1]}"',
            hint=f"leave flip off, or give flip_pairs = {json.dumps([*pairs, *missing])}",
        )


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL image as RGB, upright (EXIF orientation); 16- and 32-bit greys are scaled, not cut off."""
    if orientation(image) > 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image
    if image.mode.startswith(("I", "F")):
        values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
        scale = 255 / 65535 if values.max(initial=0) > 255 else 1.0
        return Image.fromarray(np.clip(values * scale, 0, 255).astype(np.uint8)).convert("RGB")
    return (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")


def orientation(image: Image.Image) -> int:
    """How an image is stored, as EXIF or XMP says: 1 upright (also for what is damaged), 5 to 8 on its side."""
    try:
        found = int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # what a camera wrote wrongly is no reason to leave an image out
        return 1
    return found if 1 <= found <= 8 else 1


def _window(size: tuple[int, int], augment: Augmentation) -> tuple[int, int, int, int]:
    """A random crop ``(top, left, height, width)``; area 1 and aspect 1 give the whole image."""
    area, aspect, down, right = torch.rand(4).tolist()
    area = augment.area[0] + area * (augment.area[1] - augment.area[0])
    aspect = augment.aspect ** (2 * aspect - 1)
    height = min(size[0], max(1, round(size[0] * (area / aspect) ** 0.5)))
    width = min(size[1], max(1, round(size[1] * (area * aspect) ** 0.5)))
    return round(down * (size[0] - height)), round(right * (size[1] - width)), height, width


def _mirror(value: Tensor) -> Tensor:
    return value.mirrored() if isinstance(value, Map) else F.horizontal_flip(value)


def _keep_visible(target: dict[str, Any], window: tuple[int, int, int, int], least: float) -> dict[str, Any]:
    """Drop the boxes of which less than ``least`` is inside the window, with everything that belongs to them."""
    if "boxes" not in target:
        return target
    boxes, (top, left, height, width) = target["boxes"].as_subclass(Tensor), window
    x = boxes[:, 0::2].clamp(left, left + width)
    y = boxes[:, 1::2].clamp(top, top + height)
    whole = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    inside = (x[:, 1] - x[:, 0]) * (y[:, 1] - y[:, 0])
    kept = (inside >= least * whole) & (inside > 0)
    rows = {k: v[kept] for k, v in target.items() if k in ("labels", "difficult")}
    return {**target, **rows, "boxes": tv_tensors.wrap(boxes[kept], like=target["boxes"])}


def _swapped(target: dict[str, Any], pairs: Pairs) -> dict[str, Any]:
    """The target with the classes of each pair in each other's place: an image's label, labels of boxes, masks."""
    if not pairs:
        return target
    place = {name: index for index, name in enumerate(target.get("classes", ()))}
    table = torch.arange(max(256, len(place)))
    for one, other in pairs:
        if one in place and other in place:
            table[[place[one], place[other]]] = table[[place[other], place[one]]]
    moved = {k: table[v] for k, v in target.items() if k in ("label", "labels")}
    if "mask" in target:
        moved["mask"] = tv_tensors.wrap(table.to(torch.uint8)[target["mask"].long()], like=target["mask"])
    return target | moved


def _tensors(target: dict[str, Any]) -> dict[str, Any]:
    return {k: torch.tensor(v) if isinstance(v, int) else v for k, v in target.items()}


def _wrap(target: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    target = dict(target)
    for name in ("boxes", "ignored"):
        if name in target:
            target[name] = tv_tensors.BoundingBoxes(target[name].clone(), format="XYXY", canvas_size=size)
    return target | {name: MAPS[name](target[name]) for name in target if name in MAPS}


def _unwrap(target: dict[str, Any]) -> dict[str, Any]:
    return {k: v.as_subclass(Tensor) if isinstance(v, tv_tensors.TVTensor) else v for k, v in target.items()}
