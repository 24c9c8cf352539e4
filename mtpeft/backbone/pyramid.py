"""Feature maps of one width at several strides, from any backbone: what dense heads stand on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import FeaturePyramidNetwork

from mtpeft.backbone.features import Features, FeaturesInfo
from mtpeft.errors import UsageError


class FeaturePyramid(nn.Module):
    """Features to one map ``(B, width, H_s, W_s)`` for each stride ``s``, finest first.

    A backbone whose maps share one stride (a plain ViT) gets the simple feature pyramid of ViTDet (arXiv 2203.16527),
    built from its last map alone; one with several strides gets the feature pyramid network of arXiv 1612.03144, and
    levels coarser than its last map by subsampling. No operation crosses samples. From a map of ``H`` cells, a level
    twice as fine has ``2 H`` cells and one twice as coarse ``ceil(H / 2)``.

    Args:
        info: what the backbone gives.
        width: channels of every level.
        strides: pixels per cell of each level; empty for `default_strides`.

    Raises:
        UsageError: for a stride that cannot be reached from the backbone's by doubling or halving.
    """

    def __init__(self, info: FeaturesInfo, width: int, strides: Sequence[int] = ()) -> None:
        super().__init__()
        self.width = width
        self.strides = tuple(sorted(set(strides))) or self.default_strides(info)
        kind = _Simple if len(set(info.strides)) == 1 else _Hierarchical
        self.levels = kind(info, width, self.strides)

    def forward(self, features: Features) -> list[Tensor]:
        return self.levels(features.maps)

    @staticmethod
    def default_strides(info: FeaturesInfo) -> tuple[int, ...]:
        """Half, once and twice the stride of a plain ViT; of a hierarchical backbone, those of its own from 8 to 32."""
        own = sorted(set(info.strides))
        if len(own) == 1:
            return (*([own[0] // 2] if own[0] % 2 == 0 else []), own[0], 2 * own[0])
        return tuple(stride for stride in own if 8 <= stride <= 32) or tuple(own)


class _Simple(nn.Module):
    """Every level from the last map: transposed convolutions, nothing or max pooling; then 1x1 and 3x3 convolutions."""

    def __init__(self, info: FeaturesInfo, width: int, strides: tuple[int, ...]) -> None:
        super().__init__()
        base, channels = info.strides[-1], info.channels[-1]
        self.branches = nn.ModuleList(_branch(channels, width, _octaves(stride, base)) for stride in strides)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [branch(maps[-1]) for branch in self.branches]


class _Hierarchical(nn.Module):
    """A feature pyramid network on the maps whose strides are asked for; coarser levels subsample its last one."""

    def __init__(self, info: FeaturesInfo, width: int, strides: tuple[int, ...]) -> None:
        super().__init__()
        position = {stride: index for index, stride in enumerate(info.strides)}  # the deepest map of each stride
        own = [stride for stride in strides if stride in position]
        if not own or strides[: len(own)] != tuple(own):
            raise _unreachable(next(s for s in strides if s not in position), info.strides)
        self.inputs = [position[stride] for stride in own]
        self.halvings = [_octaves(stride, own[-1]) for stride in strides[len(own) :]]
        self.network = FeaturePyramidNetwork([info.channels[index] for index in self.inputs], width)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        levels = list(self.network(OrderedDict((str(i), maps[i]) for i in self.inputs)).values())
        coarsest = levels[-1]
        return levels + [functional.max_pool2d(coarsest, kernel_size=1, stride=2**times) for times in self.halvings]


def _branch(channels: int, width: int, octaves: int) -> nn.Sequential:
    scale, channels = _rescale(channels, octaves)
    return nn.Sequential(
        *scale,
        nn.Conv2d(channels, width, kernel_size=1, bias=False),
        LayerNorm2d(width),
        nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(width),
    )


def _rescale(channels: int, octaves: int) -> tuple[list[nn.Module], int]:
    """Layers that make a map ``2**octaves`` times coarser (finer where negative), and the channels they leave."""
    if octaves >= 0:
        return [nn.MaxPool2d(2, ceil_mode=True) for _ in range(octaves)], channels
    layers: list[nn.Module] = []
    for step in range(-octaves):
        if step:
            layers += [LayerNorm2d(channels), nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels, channels // 2, kernel_size=2, stride=2))
        channels //= 2
    return layers, channels


def _octaves(stride: int, base: int) -> int:
    """How often ``base`` must be doubled (halved where negative) to give ``stride``."""
    coarse, fine = max(stride, base), min(stride, base)
    times = (coarse // fine).bit_length() - 1 if fine > 0 else 0
    if fine <= 0 or fine * 2**times != coarse:
        raise _unreachable(stride, (base,))
    return times if stride >= base else -times


def _unreachable(stride: int, strides: Sequence[int]) -> UsageError:
    own = ", ".join(str(value) for value in sorted(set(strides)))
    return UsageError(
        f"A feature map of stride {stride} cannot be made from a backbone of stride {own}.",
        hint="use the backbone's own strides, or those reached from them by doubling (or, for a plain ViT, halving)",
    )
