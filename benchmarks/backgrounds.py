"""Procedural backgrounds: flat, gradients, stripes, checks, fractal noise, marble, cells, fractals, scribbles."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 96


def background_pool(each: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``each`` backgrounds of every kind: images ``(N, 3, 96, 96)`` uint8 and their kind ``(N,)``."""
    fields = [kind(each, generator) for kind in KINDS]
    images = torch.cat([_colour(field, generator) for field in fields])
    return (images * 255).to(torch.uint8), torch.arange(len(KINDS)).repeat_interleave(each)


def _colour(field: Tensor, generator: torch.Generator) -> Tensor:
    """Map fields ``(N, 96, 96)`` through palettes of three random colours."""
    field = field - field.amin((1, 2), keepdim=True)
    field = (field / field.amax((1, 2), keepdim=True).clamp(min=1e-6))[:, None]
    a, b, c = torch.rand(3, len(field), 3, 1, 1, generator=generator)
    return torch.where(field < 0.5, a + 2 * field * (b - a), b + (2 * field - 1) * (c - b))


def _ramp(count: int, generator: torch.Generator) -> Tensor:
    """Position along a random direction, in [-1, 1] or so."""
    line = torch.linspace(-1, 1, SIZE)
    angle = 2 * math.pi * torch.rand(count, 1, 1, generator=generator)
    return angle.cos() * line[None, None, :] + angle.sin() * line[None, :, None]


def _between(low: float, high: float, count: int, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, 1, 1, generator=generator)


def flat(count: int, generator: torch.Generator) -> Tensor:
    return torch.zeros(count, SIZE, SIZE)


def gradient(count: int, generator: torch.Generator) -> Tensor:
    return _ramp(count, generator) + 0.5 * _ramp(count, generator) ** 2


def stripes(count: int, generator: torch.Generator) -> Tensor:
    wave = torch.sin(_between(5, 40, count, generator) * _ramp(count, generator) + _between(0, 6, count, generator))
    return (wave * _between(0.5, 8, count, generator)).tanh()


def checks(count: int, generator: torch.Generator) -> Tensor:
    return stripes(count, generator) * stripes(count, generator)


def fractal_noise(count: int, generator: torch.Generator) -> Tensor:
    total, roughness = torch.zeros(count, SIZE, SIZE), _between(0.3, 0.95, count, generator)
    for octave in range(6):
        cells = 3 * 2**octave
        noise = torch.randn(count, 1, cells, cells, generator=generator)
        total += roughness**octave * F.interpolate(noise, size=SIZE, mode="bilinear")[:, 0]
    return total


def marble(count: int, generator: torch.Generator) -> Tensor:
    return torch.sin(_between(2, 15, count, generator) * _ramp(count, generator) + 2 * fractal_noise(count, generator))


def cells(count: int, generator: torch.Generator) -> Tensor:
    line = torch.linspace(0, 1, SIZE)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).view(1, -1, 2)
    distance = torch.cdist(grid.expand(count, -1, -1), torch.rand(count, 20, 2, generator=generator))
    near = distance.topk(2, largest=False)
    tone = torch.rand(count, 20, generator=generator).gather(1, near.indices[..., 0])
    edges = torch.rand(count, 1, generator=generator) < 0.5
    return torch.where(edges, near.values[..., 1] - near.values[..., 0], tone).view(count, SIZE, SIZE)


def julia(count: int, generator: torch.Generator) -> Tensor:
    """Escape times of random Julia sets."""
    line, zoom = torch.linspace(-1, 1, SIZE), _between(0.3, 1.4, count, generator)
    z = torch.complex(zoom * line[None, None, :], zoom * line[None, :, None])
    angle = 2 * math.pi * torch.rand(count, 1, 1, generator=generator)
    c = torch.polar(torch.full_like(angle, 0.7885), angle)
    time = torch.zeros(count, SIZE, SIZE)
    for _ in range(24):
        z = z * z + c
        z = torch.where(z.abs() > 4, 4.0 + 0j, z)
        time += z.abs() < 4
    return time.sqrt()


def scribbles(count: int, generator: torch.Generator) -> Tensor:
    """Thin unlabelled lines and arcs: the clutter that is not an object."""
    line = torch.linspace(-1, 1, SIZE)
    field = 0.3 * fractal_noise(count, generator)
    for _ in range(6):
        centre, radius = torch.randn(2, count, 1, 1, generator=generator), _between(0.3, 3, count, generator)
        distance = ((line[None, None] - centre[0]) ** 2 + (line[None, :, None] - centre[1]) ** 2).sqrt() - radius
        field += _between(-1, 1, count, generator) * (-((distance * 40) ** 2)).exp() * 2
    return field


KINDS = (flat, gradient, stripes, checks, fractal_noise, marble, cells, julia, scribbles)
