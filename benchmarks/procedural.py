"""Procedural scenes for pre-training: seeded symbols and shapes on drawn backgrounds, labelled by construction.

No image, digit or font enters. A *symbol class* is a random stroke program (lines, corners, curves, loops); a *shape
class* is a closed outline in polar form. Each instance is deformed, drawn with its own pen and placed on a texture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from backgrounds import background_pool
from torch import Tensor

CANVAS = 64
GLYPH = 16
SYMBOLS, SHAPES = 256, 32
CLASSES = SYMBOLS + SHAPES
OBJECTS = 5
_STROKES, _CONTROLS, _POINTS = 3, 6, 24


@dataclass
class Scenes:
    """A batch of scenes.

    Attributes:
        images: ``(B, 3, 64, 64)`` in [0, 1].
        ink: ``(B, 64, 64)``, how much of an object covers each pixel, in [0, 1].
        classes: ``(B, 5)`` class of each object, -1 where there is none.
        boxes: ``(B, 5, 4)`` x0, y0, x1, y1 in pixels.
        texture: ``(B,)`` the kind of background.
    """

    images: Tensor
    ink: Tensor
    classes: Tensor
    boxes: Tensor
    texture: Tensor


class SceneMaker:
    """Draws endless batches of `Scenes`, deterministic from a seed."""

    def __init__(self, seed: int = 0, backgrounds: int = 300) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.controls, self.valid, self.angular = symbol_programs(SYMBOLS, self.generator)
        self.radii = shape_programs(SHAPES, self.generator)
        self.pool, self.pool_kind = background_pool(backgrounds, self.generator)

    def __call__(self, batch: int) -> Scenes:
        boxes, present = self._boxes(batch)
        classes = torch.randint(CLASSES, (batch, OBJECTS), generator=self.generator)
        classes = torch.where(present, classes, -1)
        alpha = torch.zeros(batch, OBJECTS, CANVAS, CANVAS)
        alpha[present] = paste(self.glyphs(classes[present]), boxes[present])
        images, texture = self._backgrounds(batch)
        images = self._ink(images, alpha)
        return Scenes(self._noise(images), alpha.amax(1), classes, boxes, texture)

    def glyphs(self, classes: Tensor) -> Tensor:
        """One fresh instance ``(N, 16, 16)`` in [0, 1] of each class ``(N,)``."""
        glyphs = torch.empty(len(classes), GLYPH, GLYPH)
        symbol = classes < SYMBOLS
        glyphs[symbol] = self._symbols(classes[symbol])
        glyphs[~symbol] = self._shapes(classes[~symbol] - SYMBOLS)
        coarse = self._uniform(len(classes)) < 0.6  # like handwriting scanned at 8 x 8
        small = F.avg_pool2d(glyphs[coarse][:, None], 2)
        if len(small):
            glyphs[coarse] = F.interpolate(small, size=GLYPH, mode="bicubic")[:, 0].clamp(0, 1)
        return glyphs

    def _symbols(self, index: Tensor) -> Tensor:
        count = len(index)
        controls = self.controls[index] + 0.05 * self._normal(count, _STROKES, _CONTROLS, 2)
        controls = controls + 0.04 * self._normal(count, _STROKES, 1, 2)
        controls = controls @ self._deformation(count)[:, None]
        points = torch.where(self.angular[index, :, None, None], _LINEAR @ controls, _SMOOTH @ controls).flatten(1, 2)
        valid = self.valid[index].repeat_interleave(_POINTS, 1)
        pen = 0.05 + 0.09 * self._uniform(count, 1, 1)
        return draw(fit(points, valid, pen), valid, pen)

    def _shapes(self, index: Tensor) -> Tensor:
        count = len(index)
        radii = self.radii[index] + 0.03 * self._normal(count, self.radii.shape[1])
        grid = _grid() @ self._deformation(count)[:, None]
        angle = torch.atan2(grid[..., 1], grid[..., 0]) + math.pi
        bins = (angle / (2 * math.pi) * radii.shape[1]).long().clamp(max=radii.shape[1] - 1)
        radius = radii.gather(1, bins.flatten(1)).view_as(bins)
        inside = radius - grid.norm(dim=-1)
        hollow = (self._uniform(count, 1, 1) < 0.3) * (0.1 + 0.1 * self._uniform(count, 1, 1))
        inside = torch.where(hollow > 0, hollow - (inside - hollow).abs(), inside)
        return (inside * GLYPH / 2 + 0.5).clamp(0, 1)

    def _deformation(self, count: int) -> Tensor:
        """Random rotation, slant and aspect: ``(N, 2, 2)``."""
        turn = 0.15 * self._normal(count)
        slant, aspect = 0.2 * self._normal(count), (0.15 * self._normal(count)).exp()
        cos, sin = turn.cos(), turn.sin()
        rotation = torch.stack([cos, -sin, sin, cos], -1).view(-1, 2, 2)
        zero = torch.zeros(count)
        return rotation @ torch.stack([aspect, zero, slant, 1 / aspect], -1).view(-1, 2, 2)

    def _boxes(self, batch: int) -> tuple[Tensor, Tensor]:
        """Boxes ``(B, 5, 4)`` that hardly overlap, and which of them are in use."""
        wanted = torch.multinomial(torch.tensor([0.4, 0.15, 0.15, 0.15, 0.15]), batch, True, generator=self.generator)
        largest = torch.tensor([52.0, 36.0, 32.0, 28.0, 26.0])[wanted]
        boxes, present = torch.zeros(batch, OBJECTS, 4), torch.zeros(batch, OBJECTS, dtype=torch.bool)
        for position in range(OBJECTS):
            candidates = self._candidates(batch, largest)
            free = ~(touches(candidates, boxes) & present[:, None]).any(2)
            chosen = free.float().argmax(1)
            rows = torch.arange(batch)
            boxes[:, position] = candidates[rows, chosen]
            present[:, position] = free[rows, chosen] & (wanted >= position)
        return boxes, present

    def _candidates(self, batch: int, largest: Tensor, tries: int = 10) -> Tensor:
        height = 14 * (largest[:, None] / 14) ** self._uniform(batch, tries)
        width = (height * (0.6 + 0.5 * self._uniform(batch, tries))).clamp(10, CANVAS - 2)
        x0 = self._uniform(batch, tries) * (CANVAS - width)
        y0 = self._uniform(batch, tries) * (CANVAS - height)
        return torch.stack([x0, y0, x0 + width, y0 + height], -1)

    def _backgrounds(self, batch: int) -> tuple[Tensor, Tensor]:
        index = torch.randint(len(self.pool), (batch,), generator=self.generator)
        size = self.pool.shape[-1]
        y, x = torch.randint(size - CANVAS, (2, batch, 1, 1, 1), generator=self.generator)
        rows, columns = y + torch.arange(CANVAS).view(1, 1, -1, 1), x + torch.arange(CANVAS)
        images = self.pool[index.view(-1, 1, 1, 1), torch.arange(3).view(1, 3, 1, 1), rows, columns].float() / 255
        mean = images.mean((2, 3), keepdim=True)
        images = mean + (0.1 + 0.8 * self._uniform(batch, 1, 1, 1)) * (images - mean)
        images = torch.where(self._uniform(batch, 1, 1, 1) < 0.5, images.transpose(2, 3), images)
        grey = self._uniform(batch, 1, 1, 1) < 0.3
        return torch.where(grey, images.mean(1, keepdim=True), images), self.pool_kind[index]

    def _ink(self, images: Tensor, alpha: Tensor) -> Tensor:
        batch = len(images)
        images = images.clone()
        level = images.mean((1, 2, 3))
        up = self._uniform(batch) < 1 - level
        for position in range(OBJECTS):
            room = torch.where(up, 1 - level, level)
            step = 0.3 + (room - 0.3).clamp(min=0) * self._uniform(batch)
            ink = torch.where(up, level + step, level - step)[:, None] + 0.15 * self._normal(batch, 3)
            opacity = alpha[:, position, None] * (0.75 + 0.25 * self._uniform(batch, 1, 1, 1))
            images += opacity * (ink.clamp(0, 1)[:, :, None, None] - images)
        return images

    def _noise(self, images: Tensor) -> Tensor:
        scale = 0.06 * self._uniform(len(images), 1, 1, 1)
        return (images + scale * self._normal(*images.shape)).clamp(0, 1)

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)


def symbol_programs(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Random stroke programs: controls ``(N, 3, 6, 2)``, strokes in use ``(N, 3)``, strokes with corners ``(N, 3)``."""
    controls = torch.zeros(count, _STROKES, _CONTROLS, 2)
    angular = torch.zeros(count, _STROKES, dtype=torch.bool)
    for program in range(count):
        for stroke in range(_STROKES):
            kind = int(torch.randint(0 if stroke else 1, 4, (), generator=generator))
            controls[program, stroke] = _STROKE_KINDS[kind](generator)
            angular[program, stroke] = kind < 2
            if stroke and torch.rand((), generator=generator) < 0.7:  # most strokes touch an earlier one
                place = torch.randint(_CONTROLS, (), generator=generator)
                controls[program, stroke] += controls[program, stroke - 1, place] - controls[program, stroke, 0]
    strokes = 1 + torch.multinomial(torch.tensor([0.3, 0.45, 0.25]), count, True, generator=generator)
    return controls, torch.arange(_STROKES) < strokes[:, None], angular


def shape_programs(count: int, generator: torch.Generator, bins: int = 90) -> Tensor:
    """Closed outlines: the radius ``(N, 90)`` at each angle. Polygons and stars first, then random blobs."""
    angle = torch.arange(bins) / bins * 2 * math.pi
    radii = []
    for shape in range(count):
        corners = 3 + shape // 2 % 6
        if shape >= count // 2:
            weights = torch.randn(2, 5, generator=generator) / torch.arange(2, 7)
            harmonic = torch.arange(2, 7)[:, None] * angle
            radius = 0.65 + 0.25 * (weights[0] @ harmonic.cos() + weights[1] @ harmonic.sin())
        elif shape % 2:
            radius = 0.6 + 0.3 * (corners * angle).cos()
        else:
            sector = 2 * math.pi / corners
            radius = 0.9 * math.cos(sector / 2) / (angle.remainder(sector) - sector / 2).cos()
        radii.append(radius.clamp(0.15, 1))
    return torch.stack(radii)


def _line(generator: torch.Generator) -> Tensor:
    ends = 2 * torch.rand(2, 2, generator=generator) - 1
    return ends[0] + torch.linspace(0, 1, _CONTROLS)[:, None] * (ends[1] - ends[0])


def _corner(generator: torch.Generator) -> Tensor:
    a, b, c = 2 * torch.rand(3, 2, generator=generator) - 1
    leg = torch.linspace(0, 1, _CONTROLS // 2 + 1)[:, None]
    return torch.cat([a + leg[:-1] * (b - a), b + leg[1:] * (c - b)])


def _curve(generator: torch.Generator) -> Tensor:
    heading, bend = 6.3 * torch.rand((), generator=generator), 0.7 * torch.randn(_CONTROLS, generator=generator)
    angle = heading + bend.mean() * 2 * torch.arange(_CONTROLS) + 0.7 * bend
    points = torch.stack([angle.cos(), angle.sin()], -1).cumsum(0)
    return 1.4 * (points - points.mean(0)) / (points.amax(0) - points.amin(0)).max()


def _loop(generator: torch.Generator) -> Tensor:
    start, sweep = 6.3 * torch.rand((), generator=generator), 3.2 + 3.1 * torch.rand((), generator=generator)
    sweep = sweep * (1 if torch.rand((), generator=generator) < 0.5 else -1)
    angle = start + torch.linspace(0, 1, _CONTROLS) * sweep
    radius = 0.35 + 0.55 * torch.rand(2, generator=generator)
    centre = 0.8 * torch.rand(2, generator=generator) - 0.4
    return centre + radius * torch.stack([angle.cos(), angle.sin()], -1)


_STROKE_KINDS = (_line, _corner, _curve, _loop)


def _basis(smooth: bool) -> Tensor:
    """Interpolation of ``_CONTROLS`` control points at ``_POINTS`` places: linear or Catmull-Rom."""
    place = torch.linspace(0, _CONTROLS - 1, _POINTS)
    left = place.long().clamp(max=_CONTROLS - 2)
    t = (place - left)[:, None]
    cubic = torch.cat([-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2], 1) / 2
    weights = cubic if smooth else torch.cat([0 * t, 1 - t, t, 0 * t], 1)
    basis = torch.zeros(_POINTS, _CONTROLS)
    for offset in range(4):
        basis.scatter_add_(
            1, (left + offset - 1).clamp(0, _CONTROLS - 1)[:, None], weights[:, offset : offset + 1].contiguous()
        )
    return basis


_LINEAR, _SMOOTH = _basis(False), _basis(True)


def _grid() -> Tensor:
    """Pixel centres of a glyph in [-1, 1]: ``(16, 16, 2)`` as x, y."""
    line = (torch.arange(GLYPH) + 0.5) / GLYPH * 2 - 1
    return torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)


def fit(points: Tensor, valid: Tensor, pen: Tensor) -> Tensor:
    """Stretch strokes ``(N, P, 2)`` to fill [-1, 1] with their pen, keeping slender ones slender."""
    low = points.masked_fill(~valid[..., None], torch.inf).amin(1, keepdim=True)
    high = points.masked_fill(~valid[..., None], -torch.inf).amax(1, keepdim=True)
    extent = (high - low).clamp(min=1e-3)
    extent = torch.maximum(extent, 0.4 * extent.amax(2, keepdim=True))
    return (points - (low + high) / 2) / extent * 2 * (1 - 1.2 * pen)


def draw(points: Tensor, valid: Tensor, pen: Tensor) -> Tensor:
    """Draw strokes with a round pen of radius ``pen`` (N, 1, 1) in glyph units of [-1, 1]: ``(N, 16, 16)``."""
    distance = torch.cdist(_grid().view(1, -1, 2).expand(len(points), -1, -1), points)
    distance = distance.masked_fill(~valid[:, None], 9).amin(2).view(-1, GLYPH, GLYPH)
    return ((2 * pen - distance) * GLYPH / 2 + 0.5).clamp(0, 1)


def paste(glyphs: Tensor, boxes: Tensor) -> Tensor:
    """Resize each glyph ``(N, 16, 16)`` into its box ``(N, 4)`` on an empty canvas: ``(N, 64, 64)``."""
    line = torch.arange(CANVAS) + 0.5
    x = (line - boxes[:, :1]) / (boxes[:, 2:3] - boxes[:, :1]) * 2 - 1
    y = (line - boxes[:, 1:2]) / (boxes[:, 3:] - boxes[:, 1:2]) * 2 - 1
    shape = (-1, CANVAS, CANVAS)
    grid = torch.stack([x[:, None].expand(shape), y[:, :, None].expand(shape)], -1)
    return F.grid_sample(glyphs[:, None], grid, align_corners=False)[:, 0]


def touches(candidates: Tensor, boxes: Tensor, gap: float = -2) -> Tensor:
    """Whether candidates ``(B, T, 4)`` come nearer than ``gap`` pixels to boxes ``(B, K, 4)``: ``(B, T, K)``."""
    a, b = candidates[:, :, None], boxes[:, None]
    return (a[..., :2] < b[..., 2:] + gap).all(-1) & (b[..., :2] < a[..., 2:] + gap).all(-1)
