"""Which of a data set's classes a task is asked for, what the others become, and which images it trains on.

With ``split``, ``protocol`` sets these for each part, as class-incremental segmentation is published. All train on the
images that show one of the part's own classes, and differ in what else those may show:

- ``overlapped`` (Cermelli et al., "Modeling the Background for Incremental Learning in Semantic Segmentation", CVPR
  2020): anything; other classes are background, so an image may come again in a later part with other labels.
- ``disjoint`` (the same paper): no class of a later part; those of earlier parts are background.
- ``sequential`` (Michieli and Zanuttigh, "Incremental Learning Techniques for Semantic Segmentation", ICCV workshops
  2019): no class of a later part; those of earlier parts keep their labels.
"""

from __future__ import annotations

import hashlib
from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch

from mtpeft.api import DataError, Dataset, Sample, Split, UsageError, did_you_mean
from mtpeft_tasks.images import ImageTask
from mtpeft_tasks.maps import BACKGROUND, IGNORED
from mtpeft_tasks.names import UNKNOWN, positions

Others = Literal["ignore", "background"]
Protocol = Literal["", "sequential", "disjoint", "overlapped"]


@dataclass
class SomeClasses(ImageTask, ABC):
    """A task whose images show several classes at once, of which it may be asked for some.

    Attributes:
        others: what becomes of the classes that it is not asked for: ``ignore`` them, so that they cost nothing
            whatever is said of them, or make them ``background``. In a group, which may know them by then, the
            background of training only: validation and test ignore them.
        only_with_classes: train only on images that show one of the classes (of ``[names]``, where given).
        without_classes: train on no image that shows one of these.
        protocol: with ``split``, sets the three above for each part: ``sequential``, ``disjoint`` or ``overlapped``.
    """

    native: ClassVar[Others]
    """What readers do with other classes."""

    others: Others = "ignore"
    only_with_classes: bool | tuple[str, ...] = False
    without_classes: tuple[str, ...] = ()
    protocol: Protocol = ""

    def part_settings(self, own: Sequence[str], earlier: Sequence[str], later: Sequence[str]) -> dict[str, Any]:
        if not self.protocol:
            return super().part_settings(own, earlier, later)
        common = [name for name in own if name in self.everywhere]
        wanted = [name for name in own if name not in self.everywhere]
        labelled = [*common, *earlier, *wanted] if self.protocol == "sequential" else list(own)
        found: dict[str, Any] = {"classes": labelled, "others": "background", "only_with_classes": wanted}
        return found if self.protocol == "overlapped" else {**found, "without_classes": list(later)}

    def _read(self, split: Split, seed: int, classes: Sequence[str]) -> Dataset:
        selects = split == "train" and bool(self.only_with_classes or self.without_classes)
        others = self.native if self.group and split != "train" else self.others
        if not selects and (not classes or others == self.native):
            return super()._read(split, seed, classes)
        whole = super()._read(split, seed, ())
        kept = self._kept(whole, classes, others)
        indices = self._selected(whole, kept) if selects else range(len(whole))
        return Narrowed(whole, kept, others, indices)

    def _kept(self, whole: Dataset, classes: Sequence[str], others: Others) -> tuple[str, ...]:
        """The classes of the data that are asked for, and the background where others become it.

        Raises:
            UsageError: for a class that the data does not have.
        """
        common = self.everywhere if others == "background" else ()
        for name in dict.fromkeys((*classes, *common, *self._named())):
            if name not in whole.classes:
                hint = f"others = {others}: {did_you_mean(name, whole.classes)}"
                raise UsageError(f'the data has no class "{name}"', hint=hint)
        wanted = {*classes, *common} if classes else set(whole.classes)
        return tuple(name for name in whole.classes if name in wanted)

    def _named(self) -> tuple[str, ...]:
        shown = self.only_with_classes
        return (*self.without_classes, *(shown if isinstance(shown, tuple) else ()))

    def _selected(self, whole: Dataset, kept: Sequence[str]) -> list[int]:
        """The images to train on.

        Raises:
            UsageError: for data that does not say what an image shows.
            DataError: where there is no such image.
        """
        asked = self.only_with_classes
        wanted = set(asked if isinstance(asked, tuple) else kept) - set(self.everywhere) if asked else set(kept)
        unwanted, found = set(self.without_classes), []
        for index in range(len(whole)):
            if (shown := whole.shown(index)) is None:
                message = "this data does not say which classes an image shows"
                raise UsageError(message, hint="leave only_with_classes and without_classes out")
            if (not asked or shown & wanted) and not shown & unwanted:
                found.append(index)
        if not found:
            hint = "look at it: mtpeft data PATH; or change only_with_classes, without_classes or protocol"
            raise DataError(f"no training image shows what is asked for ({', '.join(sorted(wanted))})", hint=hint)
        return found


class Narrowed(Dataset):
    """Samples of a data set as a task sees them that is asked for some of its classes.

    Args:
        whole: the data with all its classes.
        classes: those that are asked for.
        others: what becomes of the rest: in masks 255 or the background; of boxes ``target["ignored"] (N, 4)``, or
            nothing at all.
        indices: of the samples that are kept.
    """

    def __init__(self, whole: Dataset, classes: Sequence[str], others: Others, indices: Sequence[int]) -> None:
        self.whole, self.classes, self.others, self.indices = whole, tuple(classes), others, list(indices)
        self.left_out = whole.left_out
        self.rows = positions(whole.classes, self.classes)
        hidden = self.classes.index(BACKGROUND) if others == "background" and BACKGROUND in self.classes else IGNORED
        self.values = torch.full((256,), IGNORED, dtype=torch.uint8)
        rows = self.rows[:IGNORED]
        self.values[: len(rows)] = torch.where(rows == UNKNOWN, hidden, rows).to(torch.uint8)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        sample = self.whole[self.indices[index]]
        return replace(sample, target={**self._narrowed(sample.target), "classes": self.classes})

    def _narrowed(self, target: dict[str, Any]) -> dict[str, Any]:
        if "mask" in target:
            return {**target, "mask": self.values[target["mask"].long()]}
        labels = self.rows[target["labels"]]
        kept = labels != UNKNOWN
        rows: dict[str, Any] = {name: target[name][kept] for name in ("boxes", "difficult") if name in target}
        ignored = {"ignored": target["boxes"][~kept]} if self.others == "ignore" else {}
        return {**target, **rows, **ignored, "labels": labels[kept]}

    def origin(self, index: int) -> str:
        return self.whole.origin(self.indices[index])

    def shown(self, index: int) -> frozenset[str] | None:
        shown = self.whole.shown(self.indices[index])
        if shown is None:
            return None
        behind = {BACKGROUND} if self.others == "background" and shown - set(self.classes) else set()
        return frozenset((shown | behind) & set(self.classes))

    def manifest(self) -> dict[str, Any]:
        """The histogram counts images; where the data does not say what they show, there is none."""
        whole = self.whole.manifest()
        about = repr((whole.get("sha256"), self.classes, self.others, self.indices))
        found = {
            "count": len(self),
            "sha256": hashlib.sha256(about.encode()).hexdigest(),
            "classes": list(self.classes),
        }
        shown = [self.shown(index) for index in range(len(self))]
        if None in shown:
            return found
        counts = {name: sum(name in names for names in shown if names is not None) for name in self.classes}
        return {**found, "histogram": counts}
