"""Predictions over images, with PIL alone: captions, boxes, tinted masks with a legend, maps of numbers and vectors."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mtpeft_tasks.transforms import to_rgb

_LEAST = 256  # pictures smaller than this are enlarged, or no text would fit
_RAMP = np.array([(13, 8, 135), (126, 3, 168), (204, 71, 120), (248, 149, 64), (240, 249, 33)], np.float32)


def colour(index: int) -> tuple[int, int, int]:
    """The fixed colour of class ``index``: hues a golden angle apart, so neighbours differ; eight light, eight dark."""
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1.0, 0.75, (0.95, 0.6)[index // 8 % 2])
    return round(255 * red), round(255 * green), round(255 * blue)


def enlarged(image: Image.Image) -> tuple[Image.Image, int]:
    """An RGB copy whose longer side has at least 256 pixels, and by how much it was multiplied."""
    picture = to_rgb(image)
    factor = max(1, -(-_LEAST // max(picture.size)))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST), factor


def said(name: str, probability: float) -> str:
    """A class with how sure one is of it; the class alone where that is certain, as a truth is.

    >>> said("cat", 0.873), said("cat", 1.0)
    ('cat 87%', 'cat')
    """
    return name if probability == 1 else f"{name} {probability:.0%}"


def caption(image: Image.Image, text: str) -> Image.Image:
    """The image with a line of text at its top left."""
    picture, _ = enlarged(image)
    _label(ImageDraw.Draw(picture), (0, 0), text, (0, 0, 0))
    return picture


def boxes(image: Image.Image, found: Mapping[str, Any], classes: Sequence[str]) -> Image.Image:
    """The image with ``found["boxes"] (N, 4)`` xyxy, each in the colour of its class with its name.

    Args:
        found: ``boxes`` and ``labels``, and ``scores`` where there are any: a prediction or a target. The score of a
            target, 1, is not written.
    """
    picture, factor = enlarged(image)
    draw, width = ImageDraw.Draw(picture), max(2, max(picture.size) // 320)
    scores = found.get("scores", [None] * len(found["boxes"]))
    for box, label, score in zip(found["boxes"], found["labels"], scores, strict=True):
        left, top, right, bottom = (factor * float(side) for side in box)
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour(int(label)), width=width)
        text = classes[int(label)] + ("" if score is None or score >= 1 else f" {float(score):.2f}")
        _label(draw, (left, top), text, colour(int(label)))
    return picture


def mask(
    image: Image.Image, mask: np.ndarray, classes: Sequence[str], *, opacity: float = 0.5, plain: Sequence[int] = ()
) -> Image.Image:
    """The image tinted by a ``mask (H, W)`` of class indices, with a legend of those shown.

    Args:
        plain: classes left untinted (a background).
    """
    picture, factor = enlarged(image)
    shown = [index for index in np.unique(mask).tolist() if index < len(classes) and index not in plain]
    pixels = np.asarray(picture).astype(np.float32)
    large = mask.repeat(factor, 0).repeat(factor, 1)
    for index in shown:
        region = large == index
        pixels[region] += opacity * (np.array(colour(index)) - pixels[region])
    picture = Image.fromarray(pixels.round().astype(np.uint8))
    draw, top = ImageDraw.Draw(picture), 0
    for index in shown:
        top = _label(draw, (0, top), classes[index], colour(index))
    return picture


def heat(image: Image.Image, values: np.ndarray) -> Image.Image:
    """Numbers ``(H, W)`` in place of the image's pixels: the least dark blue, then red, the largest yellow."""
    low, high = float(values.min()), float(values.max())
    place = (values - low) / max(high - low, 1e-12) * (len(_RAMP) - 1)
    steps = np.arange(len(_RAMP))
    return _instead(image, np.stack([np.interp(place, steps, channel) for channel in _RAMP.T], -1))


def vectors(image: Image.Image, values: np.ndarray) -> Image.Image:
    """Unit vectors ``(3, H, W)`` in place of the image's pixels: components from -1 to 1 as red, green and blue."""
    return _instead(image, 127.5 * (values.transpose(1, 2, 0) + 1))


def lit(image: Image.Image, light: np.ndarray, *, plain: bool = False) -> Image.Image:
    """The image in a ``light (H, W)`` from 0 to 1, or the light alone."""
    pixels = np.full(1, 255.0) if plain else np.asarray(to_rgb(image), np.float32)
    return _instead(image, np.broadcast_to(pixels * light[..., None], (*light.shape, 3)))


def _instead(image: Image.Image, pixels: np.ndarray) -> Image.Image:
    picture = Image.fromarray(np.clip(pixels.round(), 0, 255).astype(np.uint8)).resize(image.size)
    return enlarged(picture)[0]


def _label(draw: ImageDraw.ImageDraw, corner: tuple[float, float], text: str, fill: tuple[int, int, int]) -> int:
    """Text on a filled plate, larger on larger pictures; gives the plate's bottom."""
    font = ImageFont.load_default(max(10, max(draw.im.size) // 36))
    _, _, right, bottom = draw.textbbox(corner, text, font=font)
    draw.rectangle((corner[0], corner[1], right + 2, bottom + 2), fill=fill)
    bright = 0.299 * fill[0] + 0.587 * fill[1] + 0.114 * fill[2] > 140
    draw.text(corner, text, fill=(0, 0, 0) if bright else (255, 255, 255), font=font)
    return int(bottom) + 2
