"""The contracts of a task: its data, head, loss and metric under one name.

A *task type* (``cls``, ``det``, ``seg``, or a plugin's) is a dataclass derived from `Task`; its fields are the
settings a recipe may give. The core calls only what stands here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn

from mtpeft.backbone.features import Features, FeaturesInfo, ImageConfig
from mtpeft.errors import DataError
from mtpeft.score import Score as Score
from mtpeft.settings import Count, NonNegative, Whole

if TYPE_CHECKING:
    from PIL import Image

    from mtpeft.peft.store import HeadSpec

Split = Literal["train", "val", "test"]
SPLITS: tuple[str, ...] = get_args(Split)


@dataclass
class Sample:
    """One image with its targets, before any transform.

    Attributes:
        image: a PIL image in RGB.
        target: what the task type's own readers and loss agree on (labels, boxes, a mask); may be empty.
        name: where it comes from, for error messages and predictions.
    """

    image: Image.Image
    target: dict[str, Any]
    name: str


class Dataset(ABC):
    """Samples of one split, by index; always the same sample for the same index."""

    classes: tuple[str, ...]
    left_out: tuple[DataError, ...] = ()
    """What lies beside the data and was not read: what its reader noticed (`Reader.notice`)."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample: ...

    def origin(self, index: int) -> str:
        """What the image of a sample is known by, and no other image: its file, where it has one.

        Tasks that share their images (`Task.images`) find them by it. Override it where samples are slow to read.
        """
        return self[index].name

    def shown(self, index: int) -> frozenset[str] | None:
        """The classes that a sample shows, without decoding it; None where that is not known."""
        return None

    def manifest(self) -> dict[str, Any]:
        """What to record of this split: ``{"count": N, "sha256": ..., "histogram": {class: n}}``, and more."""
        return {"count": len(self)}


def spread(count: int, most: int) -> list[int]:
    """At most so many indices of ``count``, evenly spread.

    >>> spread(12, 3), spread(2, 3)
    ([2, 6, 10], [0, 1])
    """
    shown = min(most, count)
    return [(2 * number + 1) * count // (2 * shown) for number in range(shown)]


class Metric(ABC):
    """Accumulates over batches; the result must not depend on batch size, on order, or on how samples are sharded.

    A metric can be pickled: in distributed evaluation each rank accumulates its shard, and one merges them.
    """

    @abstractmethod
    def update(self, predictions: Sequence[dict[str, Any]], targets: Sequence[dict[str, Any]]) -> None:
        """Add one batch: one prediction (of `Task.decode`) and one target for each sample."""

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Add what ``other`` has seen, exactly as if its batches had been given to `update`.

        Args:
            other: a metric that the same task made for the same classes; it is left as it is.
        """

    @abstractmethod
    def compute(self) -> Score:
        """The score of all that was seen; `Score.of` where counts give it, so that it can be recomputed from a file."""


class Head(nn.Module, ABC):
    """Features to outputs.

    Attributes:
        classes: the names its outputs stand for, in order.
        spec: what it was built from, so that a saved one can be built again; set by who builds it.
    """

    classes: tuple[str, ...]
    spec: HeadSpec | None = None

    @abstractmethod
    def forward(self, features: Features) -> Any: ...

    @abstractmethod
    def extend(self, classes: Sequence[str], info: FeaturesInfo | None = None) -> None:
        """Add outputs for ``classes`` not yet known; rows of known classes stay bit-identical.

        Args:
            info: the features' widths now, for heads that grow with them; None where they did not change.
        """

    def fit(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Make room for saved tensors of these names and shapes, which are read in next.

        By default buffers do (statistics that grow with classes); override it where parameters may differ too.
        """
        for path, module in self.named_modules():
            for name, buffer in list(module._buffers.items()):
                shape = shapes.get(f"{path}.{name}" if path else name)
                if buffer is not None and shape is not None and tuple(buffer.shape) != shape:
                    module._buffers[name] = buffer.new_zeros(shape)


@dataclass
class Task(ABC):
    """A task type. Subclass as a dataclass; fields are settings.

    Attributes:
        data: ``READER:PATH``, or empty for the embedded data.
        group: tasks of one group share one growing head (class-incremental learning); empty for a head of its own.
        images: tasks that give the same name here label the same images. Where a stage trains several of them, an image
            is augmented once for all and takes one pass, and each task that labels it has a loss; empty for images of
            its own.
        head_config: settings of the head (``head = {name = ..., ...}`` in a recipe).
        batch_size: samples per training step.
        loss_weight: factor on the task's loss.
        split: make so many tasks of its classes, or tasks with so many classes each; 0 for one with all. Where the
            number does not divide the classes, the first tasks have one more.
        class_order: with ``split``: ``shuffled`` by ``class_order_seed``; ``natural``, as the data has them; ``numpy``,
            the permutation of published tables, by seed 1993 where ``class_order_seed`` is not given; or their names.
        part: ``[k, n]`` trains on the k-th of n parts of the training samples, ``[k, l, n]`` on the k-th to l-th, dealt
            once from the data's seed: tasks with the same data and other parts have no sample in common. With tasks of
            one group in several stages this is a blurry stream (i-Blurry).
        samples: train on so many samples, drawn once from the data's seed; 0 for all.
        degenerate: ``error`` where nothing can be learned from the labels (a class that no sample shows, or no second
            class to tell the first from), or ``allow`` it.
        missing_classes: ``error`` where validation or test shows a class that training does not, or ``allow`` it, as
            some published splits do: it is never learned, and counts as wrong.
    """

    metric_name: ClassVar[str]
    unit: ClassVar[str] = "%"
    higher_is_better: ClassVar[bool] = True
    classifies: ClassVar[bool] = False
    """One class for each image, from the pooled features: a method's `Method.classifier` may stand in for its head."""
    gives: ClassVar[str] = ""
    """The target that a reader must give (`Reader.gives`); empty for a type whose data comes from nowhere else."""
    fewest_classes: ClassVar[int] = 1
    """With fewer there is nothing to learn: a task that chooses between classes needs two."""
    everywhere: ClassVar[tuple[str, ...]] = ()
    """Classes that belong to every part of a `split`, such as ``background``."""

    data: str = ""
    group: str = ""
    images: str = ""
    head_config: dict[str, Any] = field(default_factory=dict)
    batch_size: Count = 16
    loss_weight: NonNegative = 1.0
    split: Whole | tuple[Count, ...] = 0
    class_order: Literal["shuffled", "natural", "numpy"] | tuple[str, ...] = "shuffled"
    part: tuple[Count, Count] | tuple[Count, Count, Count] | None = None
    samples: Whole = 0
    degenerate: Literal["error", "allow"] = "error"
    missing_classes: Literal["error", "allow"] = "error"

    @abstractmethod
    def dataset(self, split: Split, *, seed: int = 0) -> Dataset:
        """The samples of a split.

        Raises:
            DataError: naming file and field, for data that cannot be used (no labels at all, a degenerate box, ...).
        """

    def part_settings(self, own: Sequence[str], earlier: Sequence[str], later: Sequence[str]) -> dict[str, Any]:
        """Settings of a part of a `split`, which has its ``own`` classes beside those of earlier and later parts."""
        return {"classes": list(own)}

    @abstractmethod
    def head(self, info: FeaturesInfo, classes: Sequence[str]) -> Head:
        """A head for these features; `loss` and `decode` get it with what it gives out."""

    @abstractmethod
    def transform(self, image: ImageConfig, *, train: bool) -> Callable[[Sample], tuple[Tensor, dict[str, Any]]]:
        """A function from a sample to ``(image (3, H, W) float, target of tensors)``.

        Randomness comes from torch's global generator alone: the caller seeds it for each (seed, task, sample, visit).
        In evaluation the target carries ``size``, the image's own (height, width).
        """

    @abstractmethod
    def loss(self, head: Any, outputs: Any, targets: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Named scalar losses, each a mean over the batch; the task's loss is their sum."""

    @abstractmethod
    def decode(self, head: Any, outputs: Any, targets: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Outputs to one prediction for each sample, on the CPU, in the coordinates of ``target["size"]``."""

    @abstractmethod
    def metric(self, classes: Sequence[str]) -> Metric: ...

    @abstractmethod
    def describe(self, prediction: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
        """A prediction as JSON, with class names."""

    @abstractmethod
    def draw(self, image: Image.Image, prediction: dict[str, Any], classes: Sequence[str]) -> Image.Image:
        """The image with its prediction drawn over it."""

    def truth(self, target: dict[str, Any]) -> dict[str, Any]:
        """A sample's target as the prediction that says it, to be drawn; the target itself where the two look alike."""
        return target

    def empty(self, target: dict[str, Any]) -> bool:
        """Whether a sample's target holds no label at all."""
        return bool(self.gives) and self.gives not in target

    def faults(self, sample: Sample) -> list[str]:
        """What is wrong with a sample's target, each as ``box 2 has no area``: the last net behind a reader's own."""
        return []

    def collate(self, samples: list[tuple[Tensor, dict[str, Any]]]) -> tuple[Tensor, list[dict[str, Any]]]:
        """Transformed samples to ``(images (B, 3, H, W), targets)``."""
        images, targets = zip(*samples, strict=True)
        return torch.stack(images), list(targets)
