"""timm model in, `Features` out: the one place that knows how timm hands out tokens and maps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn

from mtpeft.backbone.features import Features, FeaturesInfo
from mtpeft.errors import NotApplicable


class Extractor:
    """Reads features from a timm model without changing it.

    A backbone whose blocks all have one stride (a plain ViT) gives one map, its final normalised tokens; a
    hierarchical one gives the last map of each stride of at least 4 pixels.
    """

    def __init__(self, model: nn.Module, image_size: tuple[int, int]) -> None:
        self.image_size = image_size
        self._info: FeaturesInfo | None = None
        self.stages = list(getattr(model, "feature_info", None) or ())
        if not self.stages or not callable(getattr(model, "forward_head", None)):
            raise NotApplicable(
                f"{type(model).__name__} has no feature_info or forward_head, so its features cannot be read",
                hint="take a timm model that supports forward_intermediates",
            )
        self.strides = self._strides()
        self.single = len(self.strides) == 1
        self.prefix = int(getattr(model, "num_prefix_tokens", 0)) if self.single else 0

    def info(self, model: nn.Module) -> FeaturesInfo:
        """The widths that heads are built for, found by one pass over an empty image."""
        if self._info is None:
            self._info = self._probe(model)
        return self._info

    def _strides(self) -> dict[int, int]:
        """Stride -> index of the last stage that has it."""
        by_stride = {int(stage["reduction"]): index for index, stage in enumerate(self.stages)}
        coarse = {stride: index for stride, index in by_stride.items() if stride >= 4}
        return dict(sorted((coarse or by_stride).items()))

    def grid(self, model: nn.Module, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the token grid for images of ``size`` (height, width); (0, 0) where there is none."""
        if not self.single:
            return 0, 0
        embed = getattr(model, "patch_embed", None)
        if isinstance(embed, PatchEmbed):
            height, width = embed.dynamic_feat_size(size)
            return int(height), int(width)
        stride = next(iter(self.strides))
        return size[0] // stride, size[1] // stride

    def __call__(self, model: nn.Module, images: Tensor) -> Features:
        """``images (B, 3, H, W)`` to features."""
        timm_model: Any = model  # torch declares none of timm's methods
        if not self.single:
            final, maps = timm_model.forward_intermediates(
                images, indices=list(self.strides.values()), output_fmt="NCHW", intermediates_only=False
            )
            return Features(timm_model.forward_head(final, pre_logits=True), tuple(maps))
        final = timm_model.forward_features(images)
        pooled = timm_model.forward_head(final, pre_logits=True)
        if final.ndim == 4:
            last = getattr(model, "output_fmt", "NCHW") == "NHWC"  # Swin's tokens lie so
            return Features(pooled, (final.permute(0, 3, 1, 2) if last else final,))
        height, width = self.grid(model, (images.shape[-2], images.shape[-1]))
        tokens = final[:, self.prefix :]  # (B, H*W, C)
        maps = tokens.transpose(1, 2).reshape(len(tokens), -1, height, width)
        return Features(pooled, (maps,), final[:, : self.prefix] if self.prefix else None)

    @torch.no_grad()
    def _probe(self, model: nn.Module) -> FeaturesInfo:
        parameter = next(model.parameters())
        images = torch.zeros(1, input_channels(model), *self.image_size, device=parameter.device, dtype=parameter.dtype)
        with evaluating(model):
            features = self(model, images)
        return FeaturesInfo(
            pooled=features.pooled.shape[-1],
            channels=tuple(m.shape[1] for m in features.maps),
            strides=tuple(self.strides),
            prefix=self.prefix,
            image_size=self.image_size,
        )


def input_channels(model: nn.Module) -> int:
    """Channels of the images that a model takes: those of its first convolution."""
    return next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), 3)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module has its own mode again, a frozen batch norm among layers that
    train too.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
