"""What the task types share that predict something for each pixel: heads, and the ways between two sizes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from mtpeft.api import FeaturesInfo, Head
from mtpeft_tasks.images import ImageTask
from mtpeft_tasks.maps import MAPS
from mtpeft_tasks.names import known_positions, make_head
from mtpeft_tasks.transforms import Fit, content


def at_image_size(outputs: Tensor, size: Sequence[int], fit: Fit) -> Tensor:
    """One sample's outputs ``(K, h, w)`` bilinearly at the image's own size ``(K, *size)``, without the padding."""
    height, width = (int(side) for side in size)
    covered = content((height, width), (outputs.shape[-2], outputs.shape[-1]), fit)
    outputs = outputs.detach().float()[None, :, : covered[0], : covered[1]]
    if covered != (height, width):
        outputs = F.interpolate(outputs, (height, width), mode="bilinear", align_corners=False)
    return outputs[0]


def at_output_size(values: Tensor, size: tuple[int, int], fit: Fit, *, missing: float) -> Tensor:
    """A map ``(K, H, W)`` at the outputs' size ``(K, *size)`` by nearest neighbour; ``missing`` in the padding."""
    if values.shape[-2:] == size:
        return values
    covered = content((values.shape[-2], values.shape[-1]), size, fit)
    resized = F.interpolate(values[None].float(), covered, mode="nearest-exact")[0].to(values.dtype)
    return F.pad(resized, (0, size[1] - covered[1], 0, size[0] - covered[0]), value=missing)


def mean_where(labelled: Tensor, values: Tensor) -> Tensor:
    """The mean of ``values (B, K, H, W)`` over the pixels that are ``labelled (B, 1, H, W)``; 0 where none is."""
    count = labelled.sum() * values.shape[1]
    return torch.where(labelled, values, 0).sum() / count.clamp(min=1)


@dataclass
class DenseTask(ImageTask, ABC):
    """Numbers for each pixel, from a segmentation head with an output for each of ``names``.

    Its target is the map of `MAPS` that it ``gives``; a sample without one costs nothing.
    """

    names: ClassVar[tuple[str, ...]]

    @abstractmethod
    def compare(self, outputs: Tensor, wanted: Tensor, labelled: Tensor) -> dict[str, Tensor]:
        """Losses of outputs against the wanted, both ``(B, K, H, W)``, which is 0 where it is not ``labelled``."""

    @abstractmethod
    def read(self, outputs: Tensor) -> Tensor:
        """What one sample's outputs ``(K, H, W)`` say."""

    def head(self, info: FeaturesInfo, classes: Sequence[str]) -> Head:
        return make_head(("pixels",), "linear", self.head_config, info, classes)

    def loss(self, head: Head, outputs: Tensor, targets: list[dict[str, Any]]) -> dict[str, Tensor]:
        """A mean over the labelled pixels of the batch; 0 where there is none."""
        own = self._own(head, outputs).float()
        wanted = torch.stack([self._wanted(target, own) for target in targets])
        labelled = torch.stack([MAPS[self.gives].labelled(values)[None] for values in wanted])
        return self.compare(own, torch.where(labelled, wanted, 0), labelled)

    def decode(self, head: Head, outputs: Tensor, targets: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What `read` says, under the name of the target, at ``target["size"]``."""
        rows = zip(self._own(head, outputs), targets, strict=True)
        return [{self.gives: self.read(at_image_size(row, target["size"], self.fit)).cpu()} for row, target in rows]

    def _own(self, head: Head, outputs: Tensor) -> Tensor:
        """The outputs of this task's names: a head that is shared has others."""
        return outputs[:, known_positions(self.names, head.classes)]

    def _wanted(self, target: dict[str, Any], outputs: Tensor) -> Tensor:
        """The target ``(K, H, W)`` at the size of the outputs, on their device."""
        size, missing = (outputs.shape[-2], outputs.shape[-1]), MAPS[self.gives].missing
        if self.gives not in target:
            return outputs.new_full((len(self.names), *size), missing)
        values = target[self.gives].to(outputs.device)
        return at_output_size(values.reshape(-1, *values.shape[-2:]), size, self.fit, missing=missing).float()
